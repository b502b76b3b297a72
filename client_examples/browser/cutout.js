// Removes the background from the video: applies the portrait's matte with WebGL.
//
// The matte belongs to the still portrait, but the head moves. Near the outline each pixel of the
// video is therefore compared with the still portrait: a pixel that changed is person if it looks
// more like the person next to it than like the background next to it.

const VERTEX = `#version 300 es
in vec2 corner;
out vec2 position;
void main() {
  position = corner * vec2(0.5, -0.5) + 0.5;
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D frame, still, matte;
uniform vec2 texel;
uniform bool refinesEdge;
in vec2 position;
out vec4 colour;

float person(vec2 p) { return texture(matte, p).r; }

// Return the direction from the person to the background near the outline, else zero.
vec2 outwards(vec2 p, vec2 radius) {
  vec2 gradient = vec2(person(p + vec2(radius.x, 0.0)) - person(p - vec2(radius.x, 0.0)),
                       person(p + vec2(0.0, radius.y)) - person(p - vec2(0.0, radius.y)));
  return length(gradient) < 0.02 ? vec2(0.0) : -normalize(gradient) * radius;
}

void main() {
  vec3 pixel = texture(frame, position).rgb;
  float alpha = person(position);
  if (refinesEdge) {
    vec2 offset = outwards(position, texel * 10.0);
    if (offset != vec2(0.0)) {
      vec3 background = texture(still, position + offset * 1.6).rgb;
      vec3 body = texture(still, position - offset * 1.2).rgb;
      float difference = distance(pixel, background) - distance(pixel, body);
      float isPerson = smoothstep(-0.10, 0.10, difference);
      float hasChanged = smoothstep(0.14, 0.30, distance(pixel, texture(still, position).rgb));
      alpha = mix(alpha, isPerson, hasChanged);
    }
  }
  colour = vec4(pixel * alpha, alpha);
}`;

/** Draws a video without its background on a canvas. Throws where WebGL 2 is not available. */
export class Cutout {
  #canvas;
  #gl;
  #uniforms;
  #textures;
  #video;
  #hasMatte = false;

  /** Whether the frames of the video are not drawn now. */
  isPaused = false;

  constructor(canvas, video) {
    this.#canvas = canvas;
    this.#video = video;
    const options = { premultipliedAlpha: true, antialias: false, depth: false };
    const gl = (this.#gl = canvas.getContext("webgl2", options));
    if (!gl) throw new Error("WebGL 2 is not available");
    const program = linkProgram(gl);
    gl.useProgram(program);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    const names = ["frame", "still", "matte"];
    this.#textures = Object.fromEntries(names.map((name) => [name, createTexture(gl)]));
    names.forEach((name, unit) => gl.uniform1i(gl.getUniformLocation(program, name), unit));
    this.#uniforms = {
      texel: gl.getUniformLocation(program, "texel"),
      refinesEdge: gl.getUniformLocation(program, "refinesEdge"),
    };
    this.#drawNextFrame();
  }

  /** Show a still portrait until the video starts; without a matte the background stays. */
  show(still, matte) {
    this.#hasMatte = Boolean(matte);
    this.#upload("still", 1, still ?? WHITE);
    this.#upload("matte", 2, matte ?? WHITE);
    if (still) this.#draw(still, still.naturalWidth, still.naturalHeight, false);
  }

  #drawNextFrame() {
    const { videoWidth, videoHeight } = this.#video;
    if (videoWidth && !this.isPaused) this.#draw(this.#video, videoWidth, videoHeight, this.#hasMatte);
    this.#video.requestVideoFrameCallback(() => this.#drawNextFrame());
  }

  #draw(source, width, height, refinesEdge) {
    const gl = this.#gl;
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
      gl.viewport(0, 0, width, height);
    }
    this.#upload("frame", 0, source);
    gl.uniform2f(this.#uniforms.texel, 1 / width, 1 / height);
    gl.uniform1i(this.#uniforms.refinesEdge, refinesEdge);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  #upload(name, unit, source) {
    const gl = this.#gl;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, this.#textures[name]);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
  }
}

const WHITE = new ImageData(new Uint8ClampedArray([255, 255, 255, 255]), 1, 1);

function linkProgram(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "corner");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("The shaders cannot be linked");
  return program;
}

function createTexture(gl) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  for (const size of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, size, gl.LINEAR);
  return texture;
}
