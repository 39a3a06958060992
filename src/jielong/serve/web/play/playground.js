/** The playground: one neuron with a threshold, and a small network that learns while one watches. */
import './words.js';
import { el } from '../shell/dom.js';
import { NeuronView } from './neuron_view.js';
import { NetworkFace } from './network_face.js';

export async function mount(host) {
  const network = new NetworkFace();
  const neuron = new NeuronView(() => choose('network'));
  const faces = { network: network.host, neuron: neuron.host };
  const tabs = Object.keys(faces).map((name) => el('button', {
    type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': `panel-${name}`, t: `play_${name}`, data: { name }, on: { click: () => choose(name), keydown: arrows },
  }));
  function arrows(event) {
    if (!['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    const other = tabs.find((tab) => tab !== event.currentTarget);
    other.click();
    other.focus();
  }
  function choose(name) {
    for (const tab of tabs) {
      tab.setAttribute('aria-selected', String(tab.dataset.name === name));
      tab.tabIndex = tab.dataset.name === name ? 0 : -1;
      faces[tab.dataset.name].hidden = tab.dataset.name !== name;
    }
    if (name === 'neuron') { network.pause(); history.replaceState(null, '', '/playground#neuron'); } else network.shown();
  }
  for (const [name, face] of Object.entries(faces)) { face.id = `panel-${name}`; face.setAttribute('role', 'tabpanel'); face.setAttribute('aria-labelledby', `tab-${name}`); }
  host.append(el('div', { class: 'page wide' }, el('h1', { class: 'sr', t: 'playground' }), el('div', { class: 'segments', role: 'tablist', tLabel: 'playground' }, tabs), network.host, neuron.host));
  choose(location.hash === '#neuron' ? 'neuron' : 'network');
  addEventListener('hashchange', () => { if (!host.hidden && location.hash !== '#neuron') { choose('network'); network.reload(); } });
  return { show: () => network.shown(), hide: () => network.pause() };
}
