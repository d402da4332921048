// Browsers start no worker for a page that was opened from disk, so the search would never answer. There, the script of
// the worker runs in a hidden frame instead, with the part of a worker's interface that the search uses: messages in both
// directions. The theme looks for the name IFrameWorker to find its scripts from inside the frame.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.body.appendChild(document.createElement("iframe"));
    this.frame.hidden = true;
    const inside = this.frame.contentWindow;
    inside.document.open(); // a frame that is written cannot be replaced by its first, empty document later
    inside.document.write("<!doctype html><title>search</title><body></body>");
    inside.document.close();
    inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    this.started = new Promise((resolve, reject) => {
      const script = inside.document.createElement("script");
      script.onload = resolve;
      script.onerror = () => reject(new Error(`cannot load ${url}`));
      script.src = new URL(url, document.baseURI);
      inside.document.body.append(script);
    });
  }

  postMessage(data) {
    const inside = this.frame.contentWindow;
    this.started.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
