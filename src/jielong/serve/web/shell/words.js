/** All of the page's own text, in English and 简体中文. {0}, {1}: values put in. */

const WORDS = {
  // the shell
  skip: ['Skip to content', '跳到正文'], pages: ['Pages', '页面'], chat: ['Chat', '聊天'], inside: ['Look inside', '看内部'],
  training: ['Training', '训练'], playground: ['Playground', '游乐场'], theme: ['Dark mode', '深色模式'],
  otherLanguage: ['中文', 'English'], switchLanguage: ['切换到中文', 'Switch to English'], languageIs: ['English', '简体中文'],
  serverGone: ['The server does not answer. Trying again…', '服务器没有响应，正在重试…'], tryAgain: ['Try again', '重试'],
  brokeOff: ['The connection broke off before the answer was whole.', '连接在回答完成之前中断了。'],
  tooLarge: ['That is more text than the server takes at once. Please send a shorter one.', '文字太长，服务器一次收不下。请发短一些。'],
  tooLong: ['That is more than the model can read at once. Please write less.', '超出了模型一次能读的长度，请写短一些。'],
  tooLongForOne: ['One of the two models cannot read so much at once. Please write less, or switch Compare off and ask the other one alone.', '其中一个模型一次读不了这么多。请写短一些，或关闭“比较”，只问另一个。'],
  apiKey: ['API key', 'API 密钥'], apiKeyWhy: ['This server wants a key. It is kept for this tab alone.', '此服务器需要密钥，仅保存在本标签页。'],
  enter: ['Enter', '进入'], close: ['Close', '关闭'], copy: ['Copy', '复制'], copied: ['Copied', '已复制'], cancel: ['Cancel', '取消'],
  table: ['Table', '表格'],
  // chat
  conversations: ['Conversations', '对话列表'], conversation: ['Conversation', '对话'], newChat: ['New chat', '新对话'], search: ['Search', '搜索'],
  today: ['Today', '今天'], thisWeek: ['This week', '本周'], before7: ['Earlier', '更早'], untitled: ['Untitled', '未命名'],
  nothingFound: ['Nothing found', '没有找到'], noChats: ['What you talk about is kept here.', '聊过的内容会保存在这里。'],
  moreOf: ['More: {0}', '更多：{0}'], rename: ['Rename', '重命名'], remove: ['Delete', '删除'], removeSure: ['Delete this conversation?', '删除这段对话？'],
  saveMarkdown: ['Save as Markdown', '存为 Markdown'], saveJson: ['Save as JSON', '存为 JSON'],
  you: ['You', '你'], model: ['Model', '模型'], send: ['Send', '发送'], stop: ['Stop (Esc)', '停止 (Esc)'], askHint: ['Write a message', '写点什么'],
  mistakes: ['A small model makes mistakes. Nothing you write leaves this server.', '小模型会出错。你写的内容不会离开这台服务器。'],
  greeting: ['What shall we talk about?', '聊点什么？'], greetingWhy: ['{0} goes on where you stop: one token at a time.', '{0} 会接着你的话往下说，一次一个词元。'],
  translatorGreeting: ['What shall I translate?', '翻译什么？'], translatorHint: ['Write a sentence', '写一句话'],
  translatorWhy: ['{0} is a translator: it reads one sentence at a time and writes it in its other language. It does not remember what came before.', '{0} 是翻译模型：一次读一句话，用另一种语言写出来，不记得前面说过什么。'],
  beam: ['Beam', '束宽'], beam_why: ['How many beginnings of the translation are kept at each step, while the temperature is 0', '温度为 0 时，每一步保留多少个候选开头'],
  baseModel: ['This is a base model: it continues text and has not learned to answer. Look inside it, or serve one that was taught.', '这是基础模型，只会续写，还没学会回答。可以去看看它的内部，或者启动一个教过的模型。'],
  edit: ['Edit', '编辑'], sendEdited: ['Send', '发送'], again: ['Answer again', '重新回答'], lookInside: ['Look inside', '看内部'],
  before: ['The one before', '上一个'], after: ['The next one', '下一个'], earlier: ['Show earlier messages', '显示更早的消息'],
  actsAs: ['Role: {0}', '角色：{0}'], forgotten: ['The model no longer sees what is above: its context is full.', '以上内容模型已看不到：上下文满了。'],
  saidNothing: ['(it said nothing)', '（没有回答）'], answerDone: ['Answer: {0}', '回答：{0}'],
  colours: ['Chances', '概率'], compare: ['Compare', '比较'], settings: ['Settings', '设置'], systemPrompt: ['System prompt', '系统提示'],
  systemHint: ['Who the model is to be, and how it is to answer', '告诉模型它是谁、该怎样回答'], role: ['Role', '角色'],
  role_assistant: ['Assistant', '助手'], role_translator: ['Translator', '翻译'], role_terminal: ['Linux terminal', 'Linux 终端'], role_own: ['your own', '自定义'],
  sampling: ['Sampling', '采样'], usual: ['Reset', '恢复默认'], seed: ['Seed', '随机种子'], seedHint: ['a new one each time', '每次不同'],
  temperature: ['Temperature', '温度'], temperature_why: ['0 always takes the likeliest token; higher is bolder', '0 总取最可能的词元；越高越大胆'],
  top_p: ['Top-p', 'Top-p'], top_p_why: ['Draw from the likeliest tokens that together have this chance', '只在累计概率达到该值的最可能词元中抽取'],
  top_k: ['Top-k (0: all)', 'Top-k（0：全部）'], top_k_why: ['Draw from this many of the likeliest tokens', '只在最可能的这么多个词元中抽取'],
  min_p: ['Min-p', 'Min-p'], min_p_why: ['Leave out tokens less likely than this share of the likeliest', '去掉概率低于最可能词元该比例的词元'],
  repetition_penalty: ['Repetition penalty', '重复惩罚'], repetition_penalty_why: ['Above 1 what was said becomes less likely', '大于 1 时，说过的词更不容易再出现'],
  max_tokens: ['Longest answer (tokens)', '最长回答（词元）'], max_tokens_why: ['The answer is cut after so many tokens', '超过这么多词元就截断'],
  tokenCard: ['What else it might have said', '它还可能说什么'], tokenOf: ['token {0} of {1}', '第 {0}/{1} 个词元'],
  branchFrom: ['go on with {0}, {1}', '改用 {0} 继续，{1}'], branchHint: ['Choose another to branch off', '点选另一个，从这里分支'],
  answer_a: ['Answer A', '回答 A'], answer_b: ['Answer B', '回答 B'], vote_a: ['A is better', 'A 更好'], vote_b: ['B is better', 'B 更好'], vote_tie: ['Tie', '一样好'],
  vote_both_bad: ['Both bad', '都不好'], betterAnswer: ['Write a better answer', '写一个更好的回答'], betterHint: ['What it should have said', '它本该怎么说'],
  voted: ['Thank you. The vote is written down for the next reward model.', '谢谢，这一票已记下，用于训练下一个奖励模型。'],
  comparesTwo: ['Two models answer, in random order. Their names come after the vote.', '两个模型各答一边，左右随机，投票后才显示名字。'], comparesOne: ['One model answers twice.', '同一个模型回答两次。'],
  bothDone: ['Both answers are here. Which one is better?', '两个回答都好了，哪个更好？'], whichModel: ['Who answers', '由谁回答'], twoModels: ['two models', '两个模型'],
  votedBefore: ['There is a vote on these two already.', '这两个回答已经投过票了。'], cutShort: ['Stopped: answers that were cut short are not voted on.', '已停止：没说完的回答不参与投票。'],
  goOn: ['Go on', '继续聊'],
  // playground
  play_network: ['A small network', '小网络'], play_neuron: ['One neuron', '一个神经元'], points: ['Points', '数据点'], network: ['Network', '网络'], output: ['Output', '输出'],
  run: ['Run', '运行'], pause: ['Pause', '暂停'], startAnew: ['Start anew with other weights', '换一组权重重来'], oneEpoch: ['One epoch', '走一轮'], epoch: ['Epoch', '轮次'],
  learningRate: ['Learning rate', '学习率'], activation: ['Activation', '激活函数'], loss: ['Loss', '损失'], loss_squared: ['squared error', '平方误差'], loss_entropy: ['cross-entropy', '交叉熵'],
  penalty: ['Regularisation', '正则化'], penalty_none: ['none', '无'], penaltyRate: ['Its rate', '正则化率'], noise: ['Noise', '噪声'], share: ['Trained on', '训练集比例'], batch: ['Batch size', '批大小'],
  newData: ['Other points', '重新取点'], showTest: ['Test points', '测试点'], sharp: ['Sharp', '分明'], dataSet: ['Data set', '数据集'],
  set_circle: ['circle', '圆'], set_xor: ['exclusive or', '异或'], set_clouds: ['two clouds', '两团'], set_spiral: ['spiral', '螺旋'], set_moons: ['two moons', '双月'],
  set_plane: ['a plane (regression)', '平面（回归）'], set_hills: ['hills (regression)', '山丘（回归）'], set_waves: ['waves (regression)', '波浪（回归）'], set_own: ['your own points', '自己的点'],
  presets: ['Examples…', '示例…'], preset_first: ['The beginning', '起点'], preset_line: ['One neuron is not enough', '一个神经元不够'], preset_xor: ['Four are', '四个就够'],
  preset_feature: ['The right feature', '选对特征'], preset_spiral: ['The spiral', '螺旋'], preset_overfit: ['Learning by heart', '死记硬背'], preset_diverge: ['Too fast', '太快'],
  why_first: ['Two layers bend lines into a ring.', '两层网络能把直线弯成一个圈。'], why_line: ['One hidden neuron draws one straight line, and no line parts these four corners.', '一个隐藏神经元只能画一条直线，分不开这四个角。'],
  why_xor: ['Four lines, put together, do.', '四条线合起来就行了。'], why_feature: ['With x · y as its input the network needs no hidden layer at all.', '用 x·y 作输入，连隐藏层都不需要。'],
  why_spiral: ['More units and all features; watch the inner turns come last.', '更多神经元、所有特征；看里圈最后才学会。'], why_overfit: ['Few noisy points and many weights: the training loss falls, the test loss rises. Try L2 at 0.03.', '点少、噪声大、权重多：训练损失下降，测试损失上升。试试 L2 = 0.03。'],
  why_diverge: ['A step that is too long makes the next error larger. Try 0.03.', '步子太大，下一步错得更多。试试 0.03。'],
  featureOf: ['Feature {0}', '特征 {0}'], unitWhy: ['What this neuron says of every place', '这个神经元对每个位置的输出'], fewerUnits: ['One neuron fewer', '减一个神经元'], moreUnits: ['One neuron more', '加一个神经元'],
  unitsOf: ['{0} neurons', '{0} 个神经元'], fewerLayers: ['One layer fewer', '减一层'], moreLayers: ['One layer more', '加一层'], layersOf: ['{0} layers', '{0} 层'],
  boundary: ['What the network says of every place: blue is 1, orange is −1', '网络对每个位置的输出：蓝为 1，橙为 −1'], trainLoss: ['Training loss', '训练损失'], testLoss: ['Test loss', '测试损失'], rightSides: ['Right', '正确率'],
  copyLink: ['Copy a link to this', '复制此状态的链接'], exportPython: ['Save as Python', '存为 Python'], noPoints: ['There are no points yet: set some in the output.', '还没有点：请在输出图上点几个。'],
  diverged: ['The weights grew beyond all bounds: the steps are too long. Choose a lower learning rate and start anew.', '权重发散了：步子太大。请降低学习率后重来。'],
  manyPoints: ['300 points are enough; more are left out.', '最多 300 个点，多余的已略去。'], badCsv: ['No line of this file has three numbers: x, y, target.', '文件里没有含三个数（x, y, 目标）的行。'],
  ownHint: ['Press on the output to set points; right button or Shift sets the other kind.', '在输出图上点击放点；右键或 Shift 放另一类。'], penColour: ['Kind of point', '点的类别'], pen_high: ['blue', '蓝'], pen_low: ['orange', '橙'],
  clear: ['Clear', '清空'], loadCsv: ['CSV…', 'CSV…'],
  cinema: ['Shall we go to the cinema?', '去看电影吗？'], cinemaWhy: ['Three things speak for going. Each has a weight; if those that are true come to the threshold, the neuron says yes.', '有三个因素，各有权重；成立的因素加起来达到阈值，神经元就说“去”。'],
  input_weather: ['The weather is fine', '天气好'], input_friend: ['A friend comes along', '有朋友同去'], input_film: ['The film is good', '片子好看'],
  short_weather: ['weather', '天气'], short_friend: ['friend', '朋友'], short_film: ['film', '片子'], weights: ['Weights and threshold', '权重与阈值'], weightOf: ['Weight w{0}', '权重 w{0}'], threshold: ['Threshold', '阈值'],
  gates: ['As a gate (weather, friend)', '当作逻辑门（天气、朋友）'], truth: ['All cases', '所有情形'], truthWhy: ['Say what you want, and let the rule of 1958 find the weights.', '标出你想要的结果，让 1958 年的学习规则去找权重。'],
  says: ['says', '回答'], wanted: ['wanted', '想要'], learnOnce: ['Learn once', '学一遍'], learnOn: ['Learn on', '一直学'], learnDone: ['Learned: all cases are right.', '学会了：所有情形都对。'],
  learnWrong: ['Still wrong: {0}. Learn again.', '还错 {0} 个，再学一遍。'], learnNever: ['After 100 passes {0} are still wrong. No single neuron can do this: no one line parts the yes from the no.', '学了 100 遍仍错 {0} 个。单个神经元做不到：没有一条直线能把是与否分开。'],
  toNetwork: ['A network can', '网络可以'], neuronPicture: ['Three inputs, their weights, a sum and its threshold', '三个输入、权重、求和与阈值'], goes: ['go', '去'], stays: ['stay at home', '不去'], yes: ['yes', '去'], no: ['no', '不去'],
  // look inside
  textToLook: ['A text to look at', '要看的文字'], targetToLook: ['What has been translated so far', '目前译出的部分'], look: ['Look', '查看'], modelToLook: ['The model to look into', '要看的模型'], fromChat: ['Looking at the chat', '正在看聊天内容'], ownText: ['Look at a text of my own', '改看自己的文字'],
  cutAt: ['Only the first {0} tokens are looked at.', '只看前 {0} 个词元。'],
  attention: ['Attention', '注意力'], attentionWhy: ['Each head of each layer: a row is a token and shows which tokens it takes from. Choose a map to see it large.', '每层每个头：一行是一个词元，显示它从哪些词元取信息。点选一张放大。'],
  attentionKind: ['Kind of attention', '注意力种类'], attention_decoder: ['Decoder', '解码器'], attention_encoder: ['Encoder', '编码器'], attention_cross: ['To the source', '看原文'],
  wall: ['All heads: a row a layer, a column a head', '所有注意力头：每行一层，每列一头'], headOf: ['Layer {0}, head {1}', '第 {0} 层，第 {1} 头'], layer: ['layer', '层'], largeMap: ['Map of layer {0}, head {1}; arrow keys go from weight to weight', '第 {0} 层第 {1} 头的图，方向键逐格查看'],
  arcs: ['From one token', '从一个词元看'], toFirst: ['to the first token', '看首词'], toSelf: ['to itself', '看自己'], toPrevious: ['to the one before', '看前一个'], entropy: ['entropy (nats)', '熵 (nats)'], pointAtMap: ['Point at the map; press to follow a row.', '指向图中格子；点击查看该行。'],
  lens: ['Layer by layer: the next token', '逐层看下一个词元'], lensWhy: ['The likeliest next token if the model had to speak after that layer; darker is surer, framed is what really follows.', '假如模型在该层就要开口，最可能的下一个词元；越深越确定，带框的与实际相符。'],
  embedding: ['embedding', '嵌入'], afterToken: ['after', '之后'], reallyNext: ['really next', '实际'], reallyNextIs: ['really next: {0}, rank {1}, {2}', '实际：{0}，第 {1} 位，{2}'], afterIs: ['after {0}', '{0} 之后'],
  steps: ['Step by step: one prediction', '一步一步：一次预测'], step_tokens: ['Text becomes tokens', '文字变成词元'], step_tokens_why: ['Each has a number. Choose one to see its neighbours.', '每个都有编号。点选可看它的近邻。'],
  step_vectors: ['Numbers become a vector', '编号变成向量'], step_vectors_why: ['The last token, embedded (∈) and after each layer: its first 64 numbers.', '最后一个词元：嵌入（∈）及每层之后的前 64 个数。'], vectorsWhy: ['The vector of the last token after each layer', '最后一个词元在各层之后的向量'],
  step_scores: ['The vector becomes scores', '向量变成得分'], step_scores_why: ['One for every token of the vocabulary; these are the highest.', '词表中每个词元一个分数，这里是最高的几个。'], step_chances: ['Scores become chances', '得分变成概率'], step_chances_why: ['Softmax; the temperature sharpens or flattens it.', 'softmax；温度让它更尖或更平。'],
  neighbours: ['Neighbours', '近邻'], neighboursWhy: ['Tokens whose embeddings point most nearly the same way (cosine).', '嵌入方向最接近的词元（余弦）。'],
  positions: ['Positions', '位置'], positionsTable: ['Row: position. Column: number.', '行：位置；列：维度。'], positionsLikeness: ['How alike two positions are', '两个位置有多像'],
  positions_rotary: ['rotary', '旋转'], positions_learned: ['learned', '可学习'], positions_sinusoidal: ['sinusoidal', '正弦'], positions_rotary_why: ['Nothing is added: queries and keys are turned. Here is the cosine of each pair’s angle, fast ones at the left.', '不加任何东西，只旋转查询和键。图为各对角度的余弦，左边转得快。'],
  positions_learned_why: ['One learned vector a position is added to the embedding.', '每个位置学一个向量，加到嵌入上。'], positions_sinusoidal_why: ['Sines and cosines of slower and slower waves are added to the embedding.', '把越来越慢的正弦余弦波加到嵌入上。'],
  parameters: ['Where the parameters are', '参数在哪里'], parametersWhy: ['This model beside GPT-3: the larger it is, the more is attention and feed-forward.', '与 GPT-3 对照：模型越大，注意力和前馈占比越高。'], part: ['part', '部分'],
  part_embedding: ['embedding', '嵌入'], part_positions: ['positions', '位置'], part_attention: ['attention', '注意力'], part_ffn: ['feed-forward', '前馈'], part_router: ['router', '路由'], part_norms: ['norms', '归一化'], part_head: ['head', '输出头'],
  caution: ['A map shows where a head takes from, not why the model says what it says. To know what matters, change something and see what the model then says.', '注意力图显示从哪里取信息，并不说明模型为何这样说。想知道什么重要，改动一点，再看模型怎么说。'],
  // training
  runs: ['Runs', '运行'], noRuns: ['No runs here yet', '还没有运行'], noRunsWhy: ['Serve a run folder to watch it:', '启动一个运行文件夹即可观看：'], overlay: ['Overlay {0}', '叠加 {0}'], report: ['Report', '报告'],
  state_done: ['done', '完成'], state_running: ['running', '进行中'], state_stopped: ['stopped', '已停'], state_waiting: ['waiting', '等待'], logScale: ['Log scale', '对数坐标'], smoothing: ['Smoothing', '平滑'],
  otherMetrics: ['All other metrics', '其他指标'], noMetrics: ['This stage has left no curves.', '这个阶段没有曲线。'], sampledWhy: ['The file is long: an even sample of its lines is drawn.', '文件很长，只画均匀抽样的行。'],
  showAll: ['Show all', '显示全部'], samples: ['What the models say', '模型怎么说'], samplesWhy: ['The same prompts, before and after each stage. Move the slider.', '同样的提问，各阶段前后的回答。拖动滑块。'], samplesSlider: ['Which model', '哪个模型'],
  chart_loss: ['Loss (nats)', '损失 (nats)'], chart_bitsPerByte: ['Held-out bits per byte', '留出集每字节比特'], chart_rewards: ['Reward: proxy and gold', '奖励：代理与真实'], chart_kl: ['Distance from the start (KL, nats a reply)', '与起点的距离（KL，每回复 nats）'],
  chart_accuracy: ['Accuracy', '准确率'], chart_replyTokens: ['Tokens a reply', '每回复词元数'], chart_policyEntropy: ['Entropy (nats)', '熵 (nats)'], chart_throughput: ['Tokens a second', '每秒词元'], chart_episodes: ['Episodes a second', '每秒回合'],
  chart_learningRate: ['Learning rate', '学习率'], chart_gradientNorm: ['Gradient norm', '梯度范数'], votesWaiting: ['{0} votes for the next reward model', '{0} 票，留给下一个奖励模型'],
};

let spoken = document.documentElement.lang.startsWith('zh') ? 'zh' : 'en';

/** @returns {'en' | 'zh'} */
export const language = () => spoken;

export function setLanguage(name) {
  spoken = name;
  document.documentElement.lang = name === 'zh' ? 'zh-CN' : 'en';
}

/** The text of a key in the present language. Raises for a key that is not there: a bug, which tests look for. */
export function say(key, ...values) {
  const pair = WORDS[key];
  if (!pair) throw new Error(`words.js has no ${key}`);
  return pair[spoken === 'zh' ? 1 : 0].replace(/\{(\d)\}/g, (_, place) => values[place] ?? '');
}

const PLACES = [['data-t', null], ['data-t-label', 'aria-label'], ['data-t-title', 'title'], ['data-t-hint', 'placeholder']];

/** Says everything below `root` anew, in the present language. */
export function translate(root) {
  for (const [mark, attribute] of PLACES) {
    for (const node of root.querySelectorAll(`[${mark}]`)) {
      const written = node.getAttribute(mark);
      const text = written.startsWith('[') ? say(...JSON.parse(written)) : say(written);
      if (attribute) node.setAttribute(attribute, text); else node.textContent = text;
    }
  }
}
