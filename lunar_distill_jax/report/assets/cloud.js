"use strict";
// Unpacks the point clouds that report/cloud.py packs, and prepares them for drawing. No WebGL here.
const Cloud = (() => {
  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // -> points: Float32Array [2 H W 3] in km; conf: Uint8Array [2 H W], 0 where there is no point
  async function unpack(source, height, width) {
    const bytes = await inflate(source.data), n = 2 * height * width;
    const points = new Float32Array(3 * n), value = new Uint16Array(n);
    for (let axis = 0; axis < 3; axis++) {
      const low = n * (1 + 2 * axis), high = low + n;
      for (let i = 0; i < n; i++) {
        const col = i % width, row = Math.floor(i / width) % height;
        const code = bytes[low + i] + 256 * bytes[high + i];
        let q = (code >> 1) ^ -(code & 1);
        if (col) q += value[i - 1];
        if (row) q += value[i - width];
        if (col && row) q -= value[i - width - 1];
        value[i] = q;
        points[3 * i + axis] = source.lo[axis] + source.step[axis] * value[i];
      }
    }
    return { points, conf: bytes.subarray(0, n) };
  }

  async function unpackPair(pair) {
    const raw = await inflate(pair.photo);
    const spread = (_, i) => raw[Math.floor(i / 3)];
    const photo = pair.channels === 3 ? raw : Uint8Array.from({ length: 3 * raw.length }, spread);
    const sources = {};
    for (const [name, packed] of Object.entries(pair.sources)) {
      sources[name] = await unpack(packed, pair.height, pair.width);
    }
    return { photo, sources };
  }

  // 1..255 by position among the visible points, 0 where hidden
  function ranks(conf) {
    const count = new Float64Array(256), rank = new Uint8Array(256);
    for (const c of conf) count[c]++;
    const total = conf.length - count[0] || 1;
    for (let c = 1, below = 0; c < 256; c++) {
      rank[c] = 1 + Math.round(254 * (below + count[c] / 2) / total);
      below += count[c];
    }
    return rank;
  }

  // Uint8Array [2 H W 4]: error (0 without a truth) and confidence along their colour bars, rank of
  // confidence, view
  function attributes(source, truth, pair) {
    const n = source.conf.length, out = new Uint8Array(4 * n), rank = ranks(source.conf);
    const [lo, , hi] = (pair.error || [1, 1, 10]).map(Math.log);
    for (let i = 0; i < n; i++) {
      const view = i < n / 2 ? 0 : 1, { centre, forward } = pair.cameras[view];
      let square = 0, depth = 0;
      for (let k = 3 * i, a = 0; truth && a < 3; a++, k++) {
        square += (source.points[k] - truth.points[k]) ** 2;
        depth += (truth.points[k] - centre[a]) * forward[a];
      }
      const error = (Math.log(100 * Math.sqrt(square) / depth + 1e-9) - lo) / (hi - lo);
      out[4 * i] = truth ? 255 * Math.min(1, Math.max(0, error)) : 0;
      out[4 * i + 1] = Math.max(0, source.conf[i] - 1) / 254 * 255;
      out[4 * i + 2] = rank[source.conf[i]];
      out[4 * i + 3] = view + 1;
    }
    return out;
  }

  // Two triangles for each square of pixels, but none across a tear: neighbours far apart
  function triangles({ points, conf }, height, width) {
    const index = [], lengths = [];
    const gap = (a, b) => Math.hypot(points[3 * a] - points[3 * b],
      points[3 * a + 1] - points[3 * b + 1], points[3 * a + 2] - points[3 * b + 2]);
    for (let i = 0; i + 1 < conf.length; i += 97) {
      if (conf[i] && conf[i + 1]) lengths.push(gap(i, i + 1));
    }
    const limit = 12 * (lengths.sort((a, b) => a - b)[lengths.length >> 1] || 1);
    for (let view = 0; view < 2; view++) for (let r = 0; r + 1 < height; r++) for (let c = 0; c + 1 < width; c++) {
      const a = (view * height + r) * width + c, b = a + 1, d = a + width, e = d + 1;
      if (!(conf[a] && conf[b] && conf[d] && conf[e])) continue;
      if (Math.max(gap(a, b), gap(a, d), gap(b, e), gap(d, e)) > limit) continue;
      index.push(a, d, b, b, d, e);
    }
    return new Uint32Array(index);
  }

  // The lowest visible height, km
  function floor({ points, conf }) {
    let lowest = Infinity;
    for (let i = 0; i < conf.length; i++) if (conf[i]) lowest = Math.min(lowest, points[3 * i + 2]);
    return Number.isFinite(lowest) ? lowest : 0;
  }

  return { unpackPair, attributes, triangles, floor };
})();
