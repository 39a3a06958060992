/** Which of the models that are served answers: the chosen one, or two that are compared. */

export class Models {
  /** all: what GET /api/page tells of each, at least one. */
  constructor(all) {
    this.all = all;
    this.chosen = this.named(localStorage.getItem('model')) ?? all[0];
    this.comparing = false;
  }

  /** The model of a name; undefined where it is not served (any more). */
  named(id) {
    return this.all.find((model) => model.id === id);
  }

  choose(id) {
    this.chosen = this.named(id);
    localStorage.setItem('model', id);
  }

  /** Who answers the next question. Two are compared where two can chat; else Compare has the chosen one answer twice. */
  get writers() {
    const chatting = this.all.filter(({ chats }) => chats);
    return this.comparing && chatting.length > 1 ? chatting : [this.chosen];
  }

  /** The longest context of all. */
  get context() {
    return Math.max(...this.all.map(({ context }) => context));
  }
}
