// The person without the background: video and matte put together by WebGL.
//
// The matte belongs to the still portrait, and the head moves. So near the outline the video is
// compared with the still: where there was wall and now is not, the person has come; where there
// was the person and the video looks like the wall beside it, the person has gone.

const VERTEX = `#version 300 es
in vec2 corner;
out vec2 at;
void main() {
  at = corner * vec2(0.5, -0.5) + 0.5;
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture, still, matte;
uniform vec2 texel;
uniform bool moves;
in vec2 at;
out vec4 colour;

float person(vec2 place) { return texture(matte, place).r; }

// Where the wall nearest to a place inside the outline is: away from the person.
vec2 outwards(vec2 place, float reach) {
  vec2 step = texel * reach;
  vec2 slope = vec2(person(place + vec2(step.x, 0.0)) - person(place - vec2(step.x, 0.0)),
                    person(place + vec2(0.0, step.y)) - person(place - vec2(0.0, step.y)));
  return length(slope) < 0.02 ? vec2(0.0) : -normalize(slope) * step;
}

void main() {
  vec3 now = texture(picture, at).rgb;
  float alpha = person(at);
  if (moves) {
    float reach = 10.0;
    vec2 away = outwards(at, reach);
    if (away != vec2(0.0)) {
      float changed = distance(now, texture(still, at).rgb);
      vec3 wall = texture(still, at + away * 1.6).rgb;
      vec3 body = texture(still, at - away * 1.2).rgb;
      float likeWall = distance(now, wall), likeBody = distance(now, body);
      float moved = smoothstep(0.14, 0.30, changed);
      float side = smoothstep(-0.10, 0.10, likeWall - likeBody);
      alpha = mix(alpha, side, moved);
    }
  }
  colour = vec4(now * alpha, alpha);
}`;

/** Draws a video with its background taken away. Throws where there is no WebGL 2. */
export class Cutout {
  #canvas;
  #gl;
  #places;
  #textures;
  #video;
  #hasMatte = false;

  constructor(canvas, video) {
    this.#canvas = canvas;
    this.#video = video;
    const options = { premultipliedAlpha: true, antialias: false, depth: false };
    const gl = (this.#gl = canvas.getContext("webgl2", options));
    if (!gl) throw new Error("WebGL 2 is not available");
    const program = link(gl);
    gl.useProgram(program);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    const names = ["picture", "still", "matte"];
    this.#textures = Object.fromEntries(names.map((name, unit) => [name, texture(gl, unit)]));
    names.forEach((name, unit) => gl.uniform1i(gl.getUniformLocation(program, name), unit));
    this.#places = {
      texel: gl.getUniformLocation(program, "texel"),
      moves: gl.getUniformLocation(program, "moves"),
    };
    this.#watch();
  }

  /** Show a still portrait until the video comes; without a matte the whole picture is shown. */
  show(still, matte) {
    this.#hasMatte = Boolean(matte);
    this.#upload("still", 1, still ?? WHITE);
    this.#upload("matte", 2, matte ?? WHITE);
    if (still) this.#draw(still, still.naturalWidth, still.naturalHeight, false);
  }

  #watch() {
    const { videoWidth, videoHeight } = this.#video;
    if (videoWidth) this.#draw(this.#video, videoWidth, videoHeight, this.#hasMatte);
    this.#video.requestVideoFrameCallback(() => this.#watch());
  }

  #draw(picture, width, height, moves) {
    const gl = this.#gl;
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
      gl.viewport(0, 0, width, height);
    }
    this.#upload("picture", 0, picture);
    gl.uniform2f(this.#places.texel, 1 / width, 1 / height);
    gl.uniform1i(this.#places.moves, moves);
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

function link(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "corner");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("the shaders do not link");
  return program;
}

function texture(gl) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  for (const size of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, size, gl.LINEAR);
  return made;
}
