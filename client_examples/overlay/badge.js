// Places the badge "AI avatar" where it can be seen, whatever is shown of the avatar.
//
// The server's badge is in a corner of the video: it is removed with the background, clipped by
// rounded shapes, mirrored, too small in small pictures and outside the page in large ones. So this
// one is always drawn: where the server's is, in the same size, to cover it, and else in the part of
// the frame that is on the page.

const TEXT_SHARE = 0.045; // as the server's, of the shorter side
const MARGIN = 0.6; // of the text's height
const MIN_TEXT_PX = 9;
const MAX_TEXT_PX = 40;

/** Show or hide the badge, and move it to the visible part of the frame. */
export function placeBadge(badge, frame, isWanted, shape) {
  const page = document.documentElement;
  const { left, right, top, bottom, width, height } = frame.getBoundingClientRect();
  const seen = {
    left: Math.max(left, 0),
    right: Math.min(right, page.clientWidth),
    top: Math.max(top, 0),
    bottom: Math.min(bottom, page.clientHeight),
  };
  badge.hidden = !isWanted || seen.right <= seen.left || seen.bottom <= seen.top;
  if (badge.hidden) return;
  const text = Math.min(Math.max(TEXT_SHARE * Math.min(width, height), MIN_TEXT_PX), MAX_TEXT_PX);
  badge.style.fontSize = `${text}px`;
  const [wide, high] = [badge.offsetWidth, badge.offsetHeight];
  const centred = (seen.left + seen.right - wide) / 2;
  const x = shape === "circle" ? centred : seen.left + MARGIN * text;
  const y = seen.bottom - high - MARGIN * text;
  badge.style.left = `${clamp(x, 0, page.clientWidth - wide)}px`;
  badge.style.top = `${clamp(y, 0, page.clientHeight - high)}px`;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
