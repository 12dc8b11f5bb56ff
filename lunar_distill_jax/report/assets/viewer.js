"use strict";
// Draws one or two surfaces side by side with one shared camera. Needs cloud.js.
(() => {
  const stage = document.querySelector("#viewer .stage");
  const canvas = stage.querySelector("canvas");
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) return; // the still pictures stay
  const data = JSON.parse(document.getElementById("cloud-data").textContent);
  const form = document.querySelector("#viewer form");
  const legend = document.querySelector("#viewer .legend");
  const field = form.elements;
  const PHOTO = 0, RELIEF = 1, ERROR = 2, CONF = 3, VIEWS = 4;
  const VIEW_COLOURS = ["#e69f00", "#56b4e9"];

  // ---- Programme ------------------------------------------------------------------------------
  const VERTEX = `#version 300 es
    in vec3 a_pos, a_photo;
    in vec4 a_data; // error, confidence, confidence rank, view
    uniform mat4 u_camera;
    uniform float u_exaggeration, u_size, u_behind;
    out vec3 v_photo, v_pos;
    out vec4 v_data;
    void main() {
      v_pos = vec3(a_pos.xy, a_pos.z * u_exaggeration);
      v_photo = a_photo; v_data = vec4(a_data.xyz, a_data.w * 255.0);
      gl_Position = u_camera * vec4(v_pos, 1.0);
      if (v_data.w > 1.5) gl_Position.z += u_behind; // where the views agree view 1 is seen
      gl_PointSize = clamp(u_size / gl_Position.w, 1.0, 40.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 v_photo, v_pos;
    in vec4 v_data;
    uniform sampler2D u_maps;
    uniform int u_colour;
    uniform bool u_shade, u_plain;
    uniform float u_hide, u_relief, u_exaggeration, u_view;
    out vec4 colour;
    vec3 mapped(float row, float t) {
      return texture(u_maps, vec2((clamp(t, 0.0, 1.0) * 254.0 + 0.5) / 255.0, (row + 0.5) / 3.0)).rgb;
    }
    void main() {
      if (v_data.z < u_hide || (u_view > 0.5 && abs(v_data.w - u_view) > 0.25)) discard;
      vec3 c = v_photo;
      if (u_colour == 1) c = mapped(0.0, 0.5 + 0.5 * v_pos.z / u_exaggeration / u_relief);
      else if (u_colour == 4) c = v_data.w < 1.5 ? vec3(0.902, 0.624, 0.0) : vec3(0.337, 0.706, 0.914);
      else if (u_colour > 1) c = u_plain ? vec3(0.6) : mapped(float(u_colour) - 1.0, u_colour == 2 ? v_data.x : v_data.y);
      if (u_shade && u_colour != 0) {
        vec3 n = normalize(cross(dFdx(v_pos), dFdy(v_pos)));
        c *= 0.5 + 0.62 * abs(dot(n, normalize(vec3(-0.6, 0.45, 0.7))));
      }
      colour = vec4(c, 1.0);
    }`;
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  ["a_pos", "a_photo", "a_data"].forEach((name, i) => gl.bindAttribLocation(program, i, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return;
  gl.useProgram(program);
  const uniform = name => gl.getUniformLocation(program, "u_" + name);
  const U = Object.fromEntries(["camera", "exaggeration", "size", "colour", "shade", "plain", "hide",
    "relief", "view", "behind"].map(name => [name, uniform(name)]));
  gl.enable(gl.DEPTH_TEST);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  const maps = ["relief", "error", "conf"].flatMap(name => data.maps[name].colours);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 255, 3, 0, gl.RGB, gl.UNSIGNED_BYTE, new Uint8Array(maps));
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);

  // ---- Surfaces -------------------------------------------------------------------------------
  function buffer(array, target = gl.ARRAY_BUFFER) {
    const name = gl.createBuffer();
    gl.bindBuffer(target, name);
    gl.bufferData(target, array, gl.STATIC_DRAW);
    return name;
  }

  const loaded = new Map();
  function load(pairIndex) {
    if (!loaded.has(pairIndex)) loaded.set(pairIndex, prepare(data.pairs[pairIndex]));
    return loaded.get(pairIndex);
  }

  async function prepare(pair) {
    const { photo, sources } = await Cloud.unpackPair(pair);
    const colours = buffer(photo), ready = {};
    for (const [name, source] of Object.entries(sources)) {
      const index = Cloud.triangles(source, pair.height, pair.width);
      const visible = Uint32Array.from(source.conf.keys()).filter(i => source.conf[i]);
      ready[name] = {
        points: buffer(source.points), photo: colours, plain: name === data.reference,
        data: buffer(Cloud.attributes(source, sources[data.reference], pair)),
        mesh: buffer(index, gl.ELEMENT_ARRAY_BUFFER), meshCount: index.length,
        dots: buffer(visible, gl.ELEMENT_ARRAY_BUFFER), dotCount: visible.length,
      };
    }
    return { pair, sources: ready, grid: ground(pair.span, Cloud.floor(sources[data.reference] || Object.values(sources)[0])) };
  }

  function ground([spanX, spanY], floor) { // squares under the terrain
    const steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200], span = Math.max(spanX, spanY) || 1;
    const step = steps.find(s => span / s <= 12) || 500, n = Math.ceil(0.6 * span / step), lines = [];
    for (let i = -n; i <= n; i++) {
      lines.push(i * step, -n * step, floor, i * step, n * step, floor);
      lines.push(-n * step, i * step, floor, n * step, i * step, floor);
    }
    return { step, lines: buffer(new Float32Array(lines)), count: lines.length / 3 };
  }

  // ---- Camera ---------------------------------------------------------------------------------
  const START = { yaw: -0.42, pitch: 0.64, distance: 0.86, x: 0.02, y: -0.2, z: -0.08 }; // in scene radii
  let eye = { ...START }, scene = null, panels = [];
  const FIELD = 0.62; // radians, vertical

  function axes() { // right, up and backward of the camera, in the terrain frame
    const cy = Math.cos(eye.yaw), sy = Math.sin(eye.yaw), cp = Math.cos(eye.pitch), sp = Math.sin(eye.pitch);
    return { right: [cy, sy, 0], up: [-sy * sp, cy * sp, cp], back: [sy * cp, -cy * cp, sp] };
  }

  function radius() { // of the scene, km
    return 0.5 * Math.hypot(scene.pair.span[0], scene.pair.span[1]) || 1;
  }

  function reach(aspect) { // distance to the target, km: eye.distance 1 fits the scene into the panel
    return eye.distance * radius() / Math.tan(FIELD / 2) / Math.min(1, aspect);
  }

  function setCamera(aspect) {
    const { right, up, back } = axes(), d = reach(aspect), near = 0.02 * d, far = 20 * d, f = 1 / Math.tan(FIELD / 2);
    gl.uniform1f(U.behind, 2 * near * 0.002); // as if 0.2 % further away
    const at = [eye.x, eye.y, eye.z].map((v, i) => v * radius() + back[i] * d);
    const row = (axis, s) => [...axis.map(v => v * s), -s * axis.reduce((sum, v, i) => sum + v * at[i], 0)];
    const depth = row(back, (far + near) / (near - far));
    depth[3] += 2 * far * near / (near - far);
    const rows = [row(right, f / aspect), row(up, f), depth, row(back, -1)];
    gl.uniformMatrix4fv(U.camera, false, Float32Array.from({ length: 16 }, (_, i) => rows[i % 4][i >> 2]));
  }

  // ---- Drawing --------------------------------------------------------------------------------
  let waiting = false;
  function redraw() {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }

  function draw() {
    if (!scene) return;
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    const width = canvas.width = Math.round(canvas.clientWidth * scale);
    const height = canvas.height = Math.round(canvas.clientHeight * scale);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0.051, 0.059, 0.078, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const stacked = panels.length > 1 && width < height * 1.1;
    stage.classList.toggle("stacked", stacked);
    stage.classList.toggle("single", panels.length < 2);
    panels.forEach((name, i) => {
      const w = stacked ? width : Math.floor(width / panels.length);
      const h = stacked ? Math.floor(height / panels.length) : height;
      const x = stacked ? 0 : i * w, y = stacked ? height - (i + 1) * h : 0;
      gl.viewport(x, y, w, h);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(x, y, w, h);
      setCamera(w / h);
      gl.uniform1f(U.exaggeration, field.exaggeration.value);
      drawGrid();
      if (scene.sources[name]) drawSource(scene.sources[name], h, w / h);
    });
  }

  function attribute(place, name, size, type) {
    gl.bindBuffer(gl.ARRAY_BUFFER, name);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, type !== gl.FLOAT, 0, 0);
  }

  function drawGrid() {
    gl.uniform1i(U.colour, PHOTO);
    gl.uniform1f(U.hide, 0);
    gl.uniform1f(U.view, 0);
    attribute(0, scene.grid.lines, 3, gl.FLOAT);
    gl.disableVertexAttribArray(1);
    gl.disableVertexAttribArray(2);
    gl.vertexAttrib3f(1, 0.17, 0.19, 0.23);
    gl.vertexAttrib4f(2, 0, 0, 1, 0);
    gl.drawArrays(gl.LINES, 0, scene.grid.count);
  }

  function drawSource(source, panelHeight, aspect) {
    const mesh = field.draw.value === "mesh", { pair } = scene;
    gl.uniform1i(U.colour, Number(field.colour.value));
    gl.uniform1i(U.shade, mesh ? 1 : 0);
    gl.uniform1i(U.plain, source.plain ? 1 : 0);
    gl.uniform1f(U.hide, source.plain ? 0 : field.hide.value / 100);
    gl.uniform1f(U.relief, pair.relief || 1);
    gl.uniform1f(U.view, field.views.value === "both" ? 0 : Number(field.views.value));
    // A point is as large as the distance between pixels on the ground, so that neighbours touch.
    const pitch = Math.sqrt(pair.span[0] * pair.span[1] / (pair.height * pair.width));
    gl.uniform1f(U.size, 1.2 * pitch * panelHeight / (2 * Math.tan(FIELD / 2)));
    attribute(0, source.points, 3, gl.FLOAT);
    attribute(1, source.photo, 3, gl.UNSIGNED_BYTE);
    attribute(2, source.data, 4, gl.UNSIGNED_BYTE);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh ? source.mesh : source.dots);
    gl.drawElements(mesh ? gl.TRIANGLES : gl.POINTS, mesh ? source.meshCount : source.dotCount, gl.UNSIGNED_INT, 0);
  }

  // ---- Controls -------------------------------------------------------------------------------
  function option(select, value, text) { select.add(new Option(text, value)); }

  function describe() {
    stage.querySelector(".left").value = data.models[field.left.value];
    stage.querySelector(".right").value = data.models[field.right.value] || "";
    stage.querySelector(".gridtag").value = scene ? `grid ${scene.grid.step} ${data.unit.name}, heights × ${Number(field.exaggeration.value)}` : "";
    field.exaggerationOut.value = Number(field.exaggeration.value);
    field.hideOut.value = field.hide.value + " %";
    if (scene) drawLegend(Number(field.colour.value), scene.pair);
  }

  function drawLegend(colour, pair) {
    legend.hidden = colour === PHOTO;
    legend.replaceChildren();
    const say = text => legend.append(Object.assign(document.createElement("span"), { textContent: text }));
    if (colour === VIEWS) VIEW_COLOURS.forEach((c, i) => {
      legend.append(Object.assign(document.createElement("i"), { style: `background:${c}` }));
      say(`view ${i + 1}`);
    });
    if (colour === PHOTO || colour === VIEWS) return;
    const name = [, "relief", "error", "conf"][colour], colours = data.maps[name].colours;
    const bar = Object.assign(document.createElement("canvas"), { width: 255, height: 1 });
    const image = new ImageData(255, 1);
    for (let i = 0; i < 255; i++) image.data.set([...colours.slice(3 * i, 3 * i + 3), 255], 4 * i);
    bar.getContext("2d").putImageData(image, 0, 0);
    const three = v => Number(v.toPrecision(3)).toString().replace("-", "−");
    const ends = { relief: [-data.unit.ratio * pair.relief, data.unit.ratio * pair.relief], error: pair.error && [pair.error[0], pair.error[2]], conf: [pair.conf[0], pair.conf[2]] }[name];
    const unit = { relief: `${data.unit.small} above the plane`, error: "% of depth (log)", conf: "confidence (log)" }[name];
    say(three(ends[0]));
    legend.append(bar);
    say(`${three(ends[1])} ${unit}`);
  }

  async function choosePair() {
    const wanted = field.pair.value;
    const next = await load(Number(wanted));
    if (wanted !== field.pair.value) return; // another pair was chosen meanwhile
    scene = next;
    choosePanels();
  }

  function choosePanels() {
    panels = [field.left.value, field.right.value].filter(Boolean);
    describe();
    redraw();
  }

  function turn(dx, dy) {
    eye.yaw -= 0.008 * dx;
    eye.pitch = Math.min(1.57, Math.max(-0.2, eye.pitch + 0.008 * dy));
  }

  function move(dx, dy) {
    const { right, up } = axes(), rows = stage.classList.contains("stacked") ? 2 : 1;
    const aspect = canvas.clientWidth * rows / canvas.clientHeight / (rows === 1 ? panels.length : 1);
    const step = 2 * reach(aspect) / radius() * Math.tan(FIELD / 2) / (canvas.clientHeight / rows);
    ["x", "y", "z"].forEach((key, i) => { eye[key] += step * (up[i] * dy - right[i] * dx); });
  }

  function zoom(factor) { eye.distance = Math.min(6, Math.max(0.05, eye.distance * factor)); }

  const fingers = new Map();
  canvas.addEventListener("pointerdown", e => {
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, e);
  });
  canvas.addEventListener("pointermove", e => {
    const last = fingers.get(e.pointerId);
    if (!last) return;
    const dx = e.clientX - last.clientX, dy = e.clientY - last.clientY;
    if (fingers.size === 2) {
      const other = [...fingers.entries()].find(([id]) => id !== e.pointerId)[1];
      const apart = f => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY) || 1;
      zoom(apart(last) / apart(e));
      move(dx / 2, dy / 2);
    } else if (e.shiftKey || e.buttons & 2) move(dx, dy);
    else turn(dx, dy);
    fingers.set(e.pointerId, e);
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, e => fingers.delete(e.pointerId));
  canvas.addEventListener("contextmenu", e => e.preventDefault());
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    zoom(Math.exp(0.0012 * Math.max(-250, Math.min(250, e.deltaY * (e.deltaMode ? 30 : 1)))));
    redraw();
  }, { passive: false });
  canvas.addEventListener("keydown", e => {
    const act = { ArrowLeft: () => turn(-12, 0), ArrowRight: () => turn(12, 0), ArrowUp: () => turn(0, 12),
      ArrowDown: () => turn(0, -12), "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1.1) }[e.key];
    if (act) { act(); e.preventDefault(); redraw(); }
  });

  data.pairs.forEach((pair, i) => option(field.pair, i, pair.label));
  for (const [key, name] of Object.entries(data.models)) { option(field.left, key, name); option(field.right, key, name); }
  option(field.right, "", "none");
  field.right.value = data.right;
  if (!data.reference) field.colour.querySelector('[value="2"]').remove(); // no truth, no error
  if (Object.keys(data.models).length < 2) field.left.parentElement.hidden = field.right.parentElement.hidden = true;
  if (data.pairs.length < 2) field.pair.parentElement.hidden = true;
  field.pair.addEventListener("change", choosePair);
  form.addEventListener("input", choosePanels);
  form.addEventListener("submit", e => e.preventDefault());
  field.again.addEventListener("click", () => {
    const pair = field.pair.value;
    form.reset();
    field.pair.value = pair;
    field.right.value = data.right;
    eye = { ...START };
    choosePanels();
  });
  document.addEventListener("click", e => { // the links are further down the page, not parsed yet
    const link = e.target.closest("a.turn");
    if (!link) return;
    field.pair.value = link.dataset.pair;
    choosePair();
  });
  new ResizeObserver(redraw).observe(canvas);
  choosePair().then(() => {
    stage.querySelector(".stills").hidden = true;
    canvas.hidden = form.hidden = document.querySelector("#viewer .note").hidden = false;
    redraw();
  });
})();
