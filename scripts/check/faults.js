() => {
  const found = new Set();
  if (document.documentElement.scrollWidth > innerWidth) found.add(`wider than the screen by ${document.documentElement.scrollWidth - innerWidth}`);
  for (const one of document.querySelectorAll("body *:not([tabindex])")) {
    if (getComputedStyle(one).overflowX === "auto" && one.scrollWidth > one.clientWidth + 1) found.add(`scrolls sideways: ${one.tagName} ${one.id} ${one.className}`);
  }
  const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const painted = (layers) => {  // colours over one another, in any notation
    canvas.clearRect(0, 0, 1, 1);
    for (const one of layers) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const sheet = getComputedStyle(document.documentElement).backgroundColor;
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.unshift(getComputedStyle(one).backgroundColor);
    return painted([sheet, getComputedStyle(document.body).backgroundColor, ...layers]);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || element.closest(".unseen, [aria-hidden], script, style, option")) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    const box = range.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const name = `${element.tagName.toLowerCase()} "${text.slice(0, 40)}"`;
    const ground = behind(svg ? element.ownerSVGElement.parentElement : element);
    const ink = painted([`rgb(${ground.slice(0, 3)})`, svg ? style.fill : style.color]);
    const [a, b] = [luminance(ink), luminance(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (!svg && contrast < 4.45 && !element.closest("[disabled], .out")) found.add(`contrast ${contrast.toFixed(1)}: ${name}`);
    if (svg) {
      const outer = element.ownerSVGElement.getBoundingClientRect();
      if (box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 2 || box.bottom > outer.bottom + 2) found.add(`cut off: ${name}`);
      continue;
    }
    for (let one = element; one && one !== document.body; one = one.parentElement) {
      const how = getComputedStyle(one), around = one.getBoundingClientRect();
      const cuts = how.overflowX === "hidden" || how.overflowX === "clip";
      if (cuts && (box.right > around.right + 1 || box.left < around.left - 1)) found.add(`cut off: ${name}`);
      if (how.overflowX !== "visible") break;
    }
  }
  return [...found].slice(0, 12);
}
