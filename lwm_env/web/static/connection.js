// One WebSocket to a room: frames in, actions out, and back again when it breaks. The protocol is in docs/play.md.

const HEADER_BYTES = 24;
const TAIL_BYTES = 8;
const VERSION = 1;
export const SPECTATOR = 255;
export const flag = { terminated: 1, truncated: 2, first: 4, png: 8 };
const FINAL_CODES = { 4400: "protocol", 4403: "token", 4404: "room", 4409: "replaced", 4429: "flood" };

export function parseFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES + TAIL_BYTES || view.getUint8(0) !== VERSION) return null;
  const flags = view.getUint16(2, true);
  const length = view.getUint32(20, true);
  const type = flags & flag.png ? "image/png" : "image/jpeg";
  return {
    seat: view.getUint8(1),
    flags,
    id: view.getUint32(4, true),
    acked: view.getUint32(8, true),
    blob: new Blob([new Uint8Array(buffer, HEADER_BYTES, length)], { type }),
    reward: view.getFloat32(HEADER_BYTES + length, true),
    surprise: view.getFloat32(HEADER_BYTES + length + 4, true),
  };
}

export class Connection {
  // `on` has: frame(frame), event(event), status(text, live), lost(why)
  constructor(room, access, on) {
    Object.assign(this, { room, access, on, token: null, seq: 0, sentAt: new Map(), retries: 0, closed: false });
    this.action = null;
  }

  open(token) {
    this.token = token;
    this.socket?.close();
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#sendTo(socket, { type: "attach", room: this.room, token, access: this.access });
    socket.onmessage = ({ data }) => socket === this.socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.socket && !this.closed && this.#lose(code, reason);
    this.on.status("connecting", false);
  }

  close() {
    this.closed = true;
    this.socket?.close();
  }

  send(message) {
    this.#sendTo(this.socket, message);
  }

  #sendTo(socket, message) {
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  act(action) {
    this.action = action;
    this.seq += 1;
    this.sentAt.set(this.seq, performance.now());
    this.send({ type: "action", seq: this.seq, action });
  }

  #receive(data) {
    if (typeof data === "string") {
      const event = JSON.parse(data);
      if (event.type === "attached") {
        this.token = event.token;
        this.retries = 0;
        this.sentAt.clear();
        if (event.seat !== SPECTATOR && this.action !== null) this.act(this.action);
        this.on.status("live", true);
      }
      this.on.event(event);
      return;
    }
    const frame = parseFrame(data);
    if (!frame) return;
    this.send({ type: "ack", frame: frame.id });
    frame.latency = this.#latency(frame.acked);
    this.on.frame(frame);
  }

  // Milliseconds since the last action that this frame is the first to show.
  #latency(acked) {
    let latency = null;
    for (const [seq, at] of this.sentAt) {
      if (seq > acked) break;
      latency = performance.now() - at;
      this.sentAt.delete(seq);
    }
    return latency;
  }

  #lose(code, reason) {
    const why = FINAL_CODES[code];
    this.on.status(why ? "closed" : "reconnecting", false);
    if (why) {
      this.on.lost(why, reason);
      return;
    }
    this.retries += 1;
    setTimeout(() => !this.closed && this.open(this.token), Math.min(4000, 400 * this.retries));
  }
}
