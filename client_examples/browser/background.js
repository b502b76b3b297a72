// The background of a portrait, blurred: without the person, of whom a blur would leave a halo.

const SIDE_PX = 64; // of the blurred picture; CSS smoothes it further
const LEAST_MATTE = 4; // of 255: what has more of the person is not background
const LEAST_ALPHA = 16;

/** Draw the blurred background on a canvas; where the person stands it goes on as around them. */
export function drawBackground(canvas, still, matte) {
  const height = Math.max(1, Math.round((SIDE_PX * still.naturalHeight) / still.naturalWidth));
  const levels = [withoutPerson(still, matte, SIDE_PX, height)];
  while (levels.at(-1).width > 1) levels.push(halved(levels.at(-1)));
  canvas.width = SIDE_PX;
  canvas.height = height;
  const context = canvas.getContext("2d");
  for (const level of levels.reverse()) context.drawImage(level, 0, 0, SIDE_PX, height);
}

function withoutPerson(still, matte, width, height) {
  const person = resized(matte, width, height).getContext("2d").getImageData(0, 0, width, height);
  return withAlpha(resized(still, width, height), (_, at) => person.data[at] <= LEAST_MATTE);
}

// Colours are averaged by their alpha, so that they spread into the gap level by level.
function halved(level) {
  const [width, height] = [level.width, level.height].map((side) => Math.max(1, side >> 1));
  return withAlpha(resized(level, width, height), (alpha) => alpha >= LEAST_ALPHA);
}

function resized(image, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return canvas;
}

/** Make pixels opaque or transparent, by their alpha and place in the data. */
function withAlpha(canvas, isOpaque) {
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const { data } = pixels;
  for (let at = 0; at < data.length; at += 4) data[at + 3] = isOpaque(data[at + 3], at) ? 255 : 0;
  context.putImageData(pixels, 0, 0);
  return canvas;
}
