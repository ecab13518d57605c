// Both run on the audio thread of a context at 24 kHz: frames of 80 ms go out, frames come in.

const FRAME = 1920;

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true;
    for (const sample of samples) {
      this.frame[this.filled++] = sample;
      if (this.filled === FRAME) {
        this.port.postMessage(this.frame.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

// Plays frames as they come. Begins when `target` samples wait; a gap makes it wait for a little more the next time, and
// what is too far behind is skipped, so that the delay never grows.
class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];
    this.offset = 0;
    this.waiting = 0;
    this.target = FRAME / 2;
    this.playing = false;
    this.port.onmessage = ({ data }) => {
      if (data === "clear") {
        this.queue = [];
        this.offset = this.waiting = 0;
        this.playing = false;
        return;
      }
      this.queue.push(data);
      this.waiting += data.length;
      while (this.waiting > this.target + 3 * FRAME) this.drop();
    };
  }

  drop() {
    this.waiting -= this.queue.shift().length - this.offset;
    this.offset = 0;
  }

  process(_, [output]) {
    const out = output[0];
    if (!this.playing && this.waiting >= this.target) this.playing = true;
    if (!this.playing) return true;
    for (let i = 0; i < out.length; i++) {
      if (!this.queue.length) {
        this.playing = false;
        this.target = Math.min(this.target + FRAME / 2, 3 * FRAME);
        break;
      }
      out[i] = this.queue[0][this.offset++];
      this.waiting--;
      if (this.offset === this.queue[0].length) {
        this.queue.shift();
        this.offset = 0;
      }
    }
    if (!(this.beat = ((this.beat || 0) + 1) % 16)) this.port.postMessage(this.waiting);
    return true;
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("player", Player);
