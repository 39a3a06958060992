/** What Look inside says, in English and 简体中文. */
import { teach } from '../shell/words.js';

teach({
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
});
