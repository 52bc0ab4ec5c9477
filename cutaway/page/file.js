// The data of a page that is a file: one block in it, deflated and in base64.

export async function bytesInFile() {
  const packed = Uint8Array.from(atob(document.querySelector("#data").textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

export async function jsonInFile() {
  return JSON.parse(new TextDecoder().decode(await bytesInFile()));
}
