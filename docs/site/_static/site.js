// Gives the frame of an explorer in a notebook the height that it asks for.
addEventListener("message", event => {
  for (const frame of document.querySelectorAll("iframe"))
    if (frame.contentWindow === event.source && event.data.explorerHeight > 0)
      frame.style.height = event.data.explorerHeight + "px";
});
