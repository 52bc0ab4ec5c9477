// Maps of many cells as tiles: pictures with a pixel a cell. This file is also the worker that draws them; a page that
// is one file, and a browser without OffscreenCanvas, draw them on the page's thread. The pixels are the same.

const waiting = new Map();
let worker = null;
let tried = false;

// cells: their colours' numbers; pixels: of each number.
export function picture(cells, width, pixels) {
  const out = new Uint32Array(cells.length);
  for (let i = 0; i < cells.length; i++) out[i] = pixels[cells[i]];
  const height = cells.length / width;
  const canvas = globalThis.document ? Object.assign(document.createElement("canvas"), { width, height }) : new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(out.buffer), width), 0, 0);
  return canvas;
}

// Calls done(picture): at once where there is no worker.
export function tile(cells, width, pixels, done) {
  if (!tried) worker = begin();
  if (!worker) return done(picture(cells, width, pixels));
  const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
  waiting.set(id, { cells, width, pixels, done });
  worker.postMessage({ id, cells, width, pixels });
}

function begin() {
  tried = true;
  const page = document.querySelector("script[type='module'][src]");
  if (!page || !globalThis.OffscreenCanvas || !globalThis.Worker) return null;
  const address = new URL("../tiles.js", page.src).href;
  // The page's policy allows this one script as a worker, and no other text as a script.
  let made = null;
  try {
    const policy = globalThis.trustedTypes?.createPolicy("cutaway-tiles", { createScriptURL: () => address });
    made = new Worker(policy?.createScriptURL("") ?? address, { type: "module" });
  } catch {
    return null; // another policy than this server's is in front of it
  }
  made.onmessage = ({ data: { id, bitmap } }) => {
    waiting.get(id).done(bitmap);
    waiting.delete(id);
  };
  made.onerror = () => {
    worker = null;
    waiting.forEach((one) => one.done(picture(one.cells, one.width, one.pixels)));
    waiting.clear();
  };
  return made;
}

if (!globalThis.document) {
  globalThis.onmessage = ({ data: { id, cells, width, pixels } }) => {
    const bitmap = picture(cells, width, pixels).transferToImageBitmap();
    postMessage({ id, bitmap }, [bitmap]);
  };
}
