/** Random numbers that are the same everywhere: the exported Python draws the same ones from the same seed. */

/**
 * Numbers in [0, 1) from a seed. Source: Marsaglia 2003, "Xorshift RNGs", the 32-bit generator (13, 17, 5); its state is
 * scrambled first, for small seeds are nearly all zeros.
 * @param {number} seed @returns {() => number}
 */
export function uniform(seed) {
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bf03635) >>> 0 || 1;
  const next = () => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 4294967296;
  };
  for (let i = 0; i < 8; i += 1) next();
  return next;
}

/** Numbers of the normal distribution, two draws each. Source: Box and Muller 1958. */
export function normal(draw) {
  return () => {
    const radius = Math.sqrt(-2 * Math.log(1 - draw()));
    return radius * Math.cos(2 * Math.PI * draw());
  };
}

/** Puts a list into a random order, in place. Source: Fisher and Yates. */
export function shuffle(list, draw) {
  for (let i = list.length - 1; i > 0; i -= 1) {
    const j = Math.floor(draw() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}
