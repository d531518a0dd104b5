// Chat templates in Jinja.
#include "../../../export/chat_template.hpp"
#include "../target.hpp"

namespace fuzz::chat_template {

using namespace pocket;

Tokenizer make_tokenizer() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (const char* text : {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
                           "<|eot_id|>", "<|user|>", "[INST]"})
    v.pieces.push_back({text, 0, Tokenizer::PieceType::control});
  v.bos = 0;
  v.eos = 1;
  Tokenizer tokenizer;
  require(tokenizer.load(Tokenizer::to_blob(v)), "the tokenizer of this target is valid");
  return tokenizer;
}

void run(std::string_view input) {
  static const Tokenizer tokenizer = make_tokenizer();
  ChatTemplate chat;
  std::string family_or_reason;
  const bool known = recognise_chat_template(std::string(input), tokenizer, chat, family_or_reason);
  require(known == chat.known() && !family_or_reason.empty(), "chat template: a family or a reason");
}

// ChatML, Zephyr in part, Llama 3, parts of Qwen3 and Mistral.
std::vector<std::string> seeds() {
  return {
      "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
      "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
      "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
      "{%- for message in messages -%}\n{%- if message.role == 'user' %}{{ '<|user|>\\n' + message['content'] + "
      "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' ~ message['content'] | trim }}"
      "{% else %}{# note #}{% endif %}{% endfor %}",
      "{% set loop_messages = messages %}{% if not add_generation_prompt is defined %}{% set add_generation_prompt "
      "= false %}{% endif %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
      "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == "
      "0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
      "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
      "{% set ns = namespace(n=0) %}{{ strftime_now('%d %b %Y') }}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 "
      "%}"
      "{% endfor %}{% for message in messages %}{% set content = message.content.split('</think>')[-1].lstrip('\\n') "
      "if "
      "message.role == 'assistant' and '</think>' in message.content else message.content %}{{ '<|im_start|>' ~ "
      "message.role }}"
      "{{ content }}<|im_end|>{% endfor %}<|im_start|>assistant",
      "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set l = messages[1:] %}{% else %}"
      "{% set l = messages %}{% endif %}{% set u = l | selectattr('role', 'equalto', 'user') | list %}{% for m in l %}"
      "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
      "{% if m.role == 'user' %}{{ '[INST]' + (s + '\\n\\n' if loop.last and s is defined else '') + m.content }}"
      "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"};
}

const Registered target({"chat_template", run, seeds});

}  // namespace fuzz::chat_template
