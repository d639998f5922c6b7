"""What is in a figure."""


def drawn(axes):
    """Curves of a panel by modality: x and y as drawn."""
    return {
        line.get_label().split("\n")[0]: line.get_xydata()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
