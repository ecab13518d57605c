// Microphone and loudspeaker on one context at the model's 24 kHz.

export const RATE = 24000;
export const FRAME = 1920;

export class Sound {
  static async make() {
    const sound = new Sound();
    sound.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await sound.context.audioWorklet.addModule("/web/worklets.js");
    sound.player = new AudioWorkletNode(sound.context, "player", { outputChannelCount: [1] });
    sound.player.connect(sound.context.destination);
    await sound.context.resume();
    return sound;
  }

  play(samples) {
    this.player.port.postMessage(samples);
  }

  onDelay(tell) {
    this.player.port.onmessage = ({ data }) => tell((1000 * data) / RATE);
  }

  async listen(deviceId, hear) {
    this.deafen();
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { deviceId: deviceId ? { exact: deviceId } : undefined, channelCount: 1,
        echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    this.source = this.context.createMediaStreamSource(this.stream);
    this.microphone = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0 });
    this.microphone.port.onmessage = ({ data }) => hear(data);
    this.source.connect(this.microphone);
  }

  deafen() {
    this.source?.disconnect();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.source = this.stream = null;
  }

  // A recorded question and the silence around it, in the time it takes, in place of a microphone.
  async question(address, hear) {
    const file = await (await fetch(address)).arrayBuffer();
    const samples = (await this.context.decodeAudioData(file)).getChannelData(0);
    let at = 0;
    const began = performance.now();
    clearInterval(this.clock);
    this.clock = setInterval(() => {
      while (at * 1000 / RATE <= performance.now() - began) {
        const frame = new Float32Array(FRAME);
        frame.set(samples.subarray(at, at + FRAME));
        hear(frame);
        at += FRAME;
      }
    }, 20);
  }

  close() {
    clearInterval(this.clock);
    this.deafen();
    this.context.close();
  }
}

// Why there is no microphone, in words.
export function explain(error) {
  if (!window.isSecureContext) return "Browsers give no microphone to pages without https. Open this page with https, or on this machine.";
  switch (error.name) {
    case "NotAllowedError":
      return "The browser was told not to give this page the microphone. Allow it beside the address, then call again.";
    case "NotFoundError":
      return "No microphone was found. Plug one in, or play one of the questions below.";
    case "NotReadableError":
      return "Another program holds the microphone. Close it, then call again.";
    default:
      return `The microphone cannot be used (${error.message || error.name}). You can play one of the questions below.`;
  }
}

// [left, right] Float32Arrays -> a wav file of 16 bits.
export function wav(left, right) {
  const length = Math.max(left.length, right.length);
  const view = new DataView(new ArrayBuffer(44 + 4 * length));
  const text = (at, word) => [...word].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 4 * length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 2, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 4 * RATE, true); view.setUint16(32, 4, true);
  view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 4 * length, true);
  for (let k = 0; k < length; k++) {
    [left[k] ?? 0, right[k] ?? 0].forEach((value, side) => {
      view.setInt16(44 + 4 * k + 2 * side, Math.max(-1, Math.min(1, value)) * 32767, true);
    });
  }
  return new Blob([view], { type: "audio/wav" });
}
