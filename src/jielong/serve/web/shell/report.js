/**
 * /report#RUN: the report of a run where the server wants a key, which a plain link cannot send. It is fetched with the
 * key and shown in a frame that runs no script. (Without its origin its links to its own parts would lead nowhere.)
 */
import { el } from './dom.js';
import { request, trouble } from './api.js';
import { say } from './words.js';

const main = document.getElementById('face');

async function show() {
  const name = decodeURIComponent(location.hash.slice(1));
  document.title = `${name} · jielong`;
  try {
    const content = await (await request(`/api/runs/${encodeURIComponent(name)}/report`)).blob();
    main.replaceChildren(el('iframe', { sandbox: 'allow-same-origin', src: URL.createObjectURL(content), title: `${say('report')}: ${name}` }));
  } catch (error) {
    main.replaceChildren(trouble(error, show));
  }
}

addEventListener('hashchange', show);
show();
