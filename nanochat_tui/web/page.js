// Runs before textual.js, which makes the terminal and opens the websocket as the page is loaded.
"use strict";
(() => {
  // The cookie is set by now: the token need not stay in the address, in the history or in a screenshot.
  const here = new URL(location.href);
  here.searchParams.delete("token");
  history.replaceState(null, "", here);

  const fontSize = Number(here.searchParams.get("fontsize"));

  // Everything is addressed relative to the page, so that it works behind a proxy's path and on a forwarded port.
  const Plain = window.WebSocket;
  window.WebSocket = class extends Plain {
    constructor(address) {
      const target = new URL(address, document.baseURI);
      target.protocol = target.protocol === "https:" ? "wss:" : "ws:";
      super(target);
      this.addEventListener("close", (event) => {
        if (event.reason) document.getElementById("reason").textContent = event.reason;
        document.getElementById("again").focus();
      });
    }
    send(data) {
      if (this.readyState === Plain.OPEN) super.send(data); // a window may be resized while the connection is made
    }
  };
  const open = window.open.bind(window);
  window.open = (address, target) =>
    open(String(address).replace(`${location.origin}/download/`, "download/"), target, "noopener");

  document.addEventListener("DOMContentLoaded", () => {
    if (fontSize >= 6 && fontSize <= 60) document.getElementById("terminal").dataset.fontSize = String(fontSize);
    document.getElementById("again").addEventListener("click", () => location.reload());
    // The application draws a cursor only once it knows that the page has the focus: give it as the first byte comes.
    const focus = () => document.querySelector(".xterm-helper-textarea")?.focus();
    new MutationObserver((_, observer) => {
      if (!document.body.classList.contains("-first-byte")) return;
      observer.disconnect();
      focus();
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    window.addEventListener("focus", () => document.body.classList.contains("-closed") || focus());
  });
})();
