// Records what the canvas shows, as a file for the user.

import { $, download } from "./page.js";

export class Recorder {
  constructor(screen, name) {
    Object.assign(this, { screen, name, media: null });
  }

  toggle() {
    if (this.media) this.stop();
    else this.#start();
  }

  stop() {
    this.media?.stop();
  }

  #start() {
    const type = ["video/webm;codecs=vp9", "video/webm", "video/mp4"].find((kind) => MediaRecorder.isTypeSupported(kind));
    const parts = [];
    this.media = new MediaRecorder(this.screen.captureStream(), { mimeType: type, videoBitsPerSecond: 4_000_000 });
    this.media.ondataavailable = ({ data }) => parts.push(data);
    this.media.onstop = () => {
      this.media = null;
      this.#draw(false);
      download(new Blob(parts, { type }), `${this.name}.${type.includes("mp4") ? "mp4" : "webm"}`);
    };
    this.media.start();
    this.#draw(true);
  }

  #draw(on) {
    $("record").setAttribute("aria-pressed", on);
    $("record").lastElementChild.textContent = on ? "Stop" : "Record";
    $("stage").classList.toggle("recording", on);
  }
}
