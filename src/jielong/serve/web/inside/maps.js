/** Attention maps as they come from the server, and as they are painted. */
import { ink } from '../shell/dom.js';

/**
 * @typedef {{kind: string, shape: number[], queries: string[], keys: string[], shown: number[], figures: Record<string, number[][]>,
 *   weights: Uint16Array}} Maps weights: [layer][head][query][key], 65535 is 1
 */

/** @param {ArrayBuffer} buffer @returns {{cut: boolean, kinds: Maps[]}} */
export function parseMaps(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  for (const maps of header.kinds) {
    const size = maps.shape.reduce((product, each) => product * each, 1);
    maps.weights = new Uint16Array(buffer, at, size);
    at += 2 * size;
  }
  return header;
}

/** One head's map: weight(query, key) 0 … 1. */
export function headOf(maps, layer, head) {
  const [, numHeads, numQueries, numKeys] = maps.shape;
  const size = numQueries * numKeys;
  const weights = maps.weights.subarray((layer * numHeads + head) * size, (layer * numHeads + head + 1) * size);
  return { weights, numQueries, numKeys, weight: (query, key) => weights[query * numKeys + key] / 65535 };
}

/** 256 colours from paper to ink, of the present theme; a weight is drawn by its square root, so that small ones show. */
export function ramp() {
  const read = (name) => ink(name).match(/[\d.]+/g).slice(0, 3).map(Number);
  const [from, to] = [read('--paper'), read('--accent')];
  const table = new Uint32Array(256);
  for (let i = 0; i < 256; i += 1) {
    const part = Math.sqrt(i / 255);
    const [r, g, b] = from.map((value, place) => Math.round(value + (to[place] - value) * part));
    table[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

/** Paints a head, one pixel a weight. */
export function paintHead(canvas, { weights, numQueries, numKeys }, colours) {
  canvas.width = numKeys;
  canvas.height = numQueries;
  const image = new ImageData(numKeys, numQueries);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < weights.length; i += 1) pixels[i] = colours[weights[i] >> 8];
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/** Paints numbers of any sign, 2-D, orange below zero and blue above. reach: what is drawn full. */
export function paintTable(canvas, table, reach) {
  const [rows, columns] = [table.length, table[0].length];
  canvas.width = columns;
  canvas.height = rows;
  const read = (name) => ink(name).match(/[\d.]+/g).slice(0, 3).map(Number);
  const [paper, high, low] = [read('--paper'), read('--accent'), read('--warm')];
  const image = new ImageData(columns, rows);
  table.forEach((row, y) => row.forEach((value, x) => {
    const strength = Math.min(1, Math.abs(value) / reach);
    const end = value < 0 ? low : high;
    const at = 4 * (y * columns + x);
    for (let i = 0; i < 3; i += 1) image.data[at + i] = paper[i] + (end[i] - paper[i]) * strength;
    image.data[at + 3] = 255;
  }));
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/** A token on a label: its blank before it becomes a dot, line ends become visible. */
export function label(token) {
  const shown = token.replace(/\n/g, '↵').replace(/\t/g, '⇥');
  return shown.trim() ? shown.replace(/^ /, '') : shown.replace(/ /g, '␣') || '∅';
}
