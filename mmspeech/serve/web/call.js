// A call over /api/chat, with plain samples in place of Opus. See mmspeech/serve/protocol.py for the kinds.

const KIND = { handshake: 0, audio: 1, text: 2, metadata: 4, error: 5, ping: 6, coloured: 7, image: 8 };
const words = new TextDecoder();

function message(kind, payload) {
  const bytes = new Uint8Array(1 + payload.byteLength);
  bytes[0] = kind;
  bytes.set(new Uint8Array(payload.buffer ?? payload, payload.byteOffset ?? 0, payload.byteLength), 1);
  return bytes;
}

export class Call extends EventTarget {
  constructor() {
    super();
    const address = new URL("/api/chat", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.searchParams.set("audio", "pcm16");
    const token = new URLSearchParams(location.search).get("token");
    if (token) address.searchParams.set("token", token);
    this.open = false;
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.take(new Uint8Array(data));
    this.socket.onclose = ({ reason, wasClean }) => this.tell("end", { reason, wasClean });
    this.socket.onopen = () => this.tell("connected");
  }

  tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  take(bytes) {
    const payload = bytes.subarray(1);
    switch (bytes[0]) {
      case KIND.handshake:
        this.open = true;
        return this.tell("begin");
      case KIND.audio: {
        const view = new Int16Array(payload.slice().buffer);
        return this.tell("sound", { samples: Float32Array.from(view, (value) => value / 32768) });
      }
      case KIND.text:
        return this.tell("text", { piece: words.decode(payload), gate: 0 });
      case KIND.coloured:
        return this.tell("text", { piece: words.decode(payload.subarray(1)), gate: payload[0] / 10 });
      case KIND.metadata:
        return this.tell("metadata", JSON.parse(words.decode(payload)));
      case KIND.error:
        return this.tell("fault", { words: words.decode(payload) });
    }
  }

  send(kind, payload) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(message(kind, payload));
  }

  say(samples) {
    if (!this.open) return;
    const whole = Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);
    this.send(KIND.audio, whole);
  }

  async show(blob) {
    this.send(KIND.image, new Uint8Array(blob ? await blob.arrayBuffer() : 0));
  }

  end() {
    this.socket.close(1000);
  }
}
