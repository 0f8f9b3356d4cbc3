"""The inputs of the reference values: texts for logits, conversations for greedy continuations, texts that are hard to tokenize.

Everything was written for this purpose except DECLARATION, the United States Declaration of Independence (1776, public domain).
"""

from __future__ import annotations

from typing import Any

DECLARATION = """\
When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have connected them \
with another, and to assume among the powers of the earth, the separate and equal station to which the Laws of Nature and of \
Nature's God entitle them, a decent respect to the opinions of mankind requires that they should declare the causes which impel them \
to the separation.

We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with certain \
unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.--That to secure these rights, Governments are \
instituted among Men, deriving their just powers from the consent of the governed, --That whenever any Form of Government becomes \
destructive of these ends, it is the Right of the People to alter or to abolish it, and to institute new Government, laying its \
foundation on such principles and organizing its powers in such form, as to them shall seem most likely to effect their Safety and \
Happiness. Prudence, indeed, will dictate that Governments long established should not be changed for light and transient causes; \
and accordingly all experience hath shewn, that mankind are more disposed to suffer, while evils are sufferable, than to right \
themselves by abolishing the forms to which they are accustomed. But when a long train of abuses and usurpations, pursuing \
invariably the same Object evinces a design to reduce them under absolute Despotism, it is their right, it is their duty, to throw \
off such Government, and to provide new Guards for their future security.--Such has been the patient sufferance of these Colonies; \
and such is now the necessity which constrains them to alter their former Systems of Government. The history of the present King of \
Great Britain is a history of repeated injuries and usurpations, all having in direct object the establishment of an absolute \
Tyranny over these States. To prove this, let Facts be submitted to a candid world.

He has refused his Assent to Laws, the most wholesome and necessary for the public good.

He has forbidden his Governors to pass Laws of immediate and pressing importance, unless suspended in their operation till his \
Assent should be obtained; and when so suspended, he has utterly neglected to attend to them.

He has refused to pass other Laws for the accommodation of large districts of people, unless those people would relinquish the right \
of Representation in the Legislature, a right inestimable to them and formidable to tyrants only.

He has called together legislative bodies at places unusual, uncomfortable, and distant from the depository of their public Records, \
for the sole purpose of fatiguing them into compliance with his measures.

He has dissolved Representative Houses repeatedly, for opposing with manly firmness his invasions on the rights of the people.

He has refused for a long time, after such dissolutions, to cause others to be elected; whereby the Legislative powers, incapable of \
Annihilation, have returned to the People at large for their exercise; the State remaining in the mean time exposed to all the \
dangers of invasion from without, and convulsions within.

He has endeavoured to prevent the population of these States; for that purpose obstructing the Laws for Naturalization of \
Foreigners; refusing to pass others to encourage their migrations hither, and raising the conditions of new Appropriations of Lands.

He has obstructed the Administration of Justice, by refusing his Assent to Laws for establishing Judiciary powers.

He has made Judges dependent on his Will alone, for the tenure of their offices, and the amount and payment of their salaries.

He has erected a multitude of New Offices, and sent hither swarms of Officers to harrass our people, and eat out their substance.

He has kept among us, in times of peace, Standing Armies without the Consent of our legislatures.

He has affected to render the Military independent of and superior to the Civil power.

He has combined with others to subject us to a jurisdiction foreign to our constitution, and unacknowledged by our laws; giving his \
Assent to their Acts of pretended Legislation:

For Quartering large bodies of armed troops among us:

For protecting them, by a mock Trial, from punishment for any Murders which they should commit on the Inhabitants of these States:

For cutting off our Trade with all parts of the world:

For imposing Taxes on us without our Consent:

For depriving us in many cases, of the benefits of Trial by Jury:

For transporting us beyond Seas to be tried for pretended offences

For abolishing the free System of English Laws in a neighbouring Province, establishing therein an Arbitrary government, and \
enlarging its Boundaries so as to render it at once an example and fit instrument for introducing the same absolute rule into these \
Colonies:

For taking away our Charters, abolishing our most valuable Laws, and altering fundamentally the Forms of our Governments:

For suspending our own Legislatures, and declaring themselves invested with power to legislate for us in all cases whatsoever.

He has abdicated Government here, by declaring us out of his Protection and waging War against us.

He has plundered our seas, ravaged our Coasts, burnt our towns, and destroyed the lives of our people.

He is at this time transporting large Armies of foreign Mercenaries to compleat the works of death, desolation and tyranny, already \
begun with circumstances of Cruelty & perfidy scarcely paralleled in the most barbarous ages, and totally unworthy the Head of a \
civilized nation.

He has constrained our fellow Citizens taken Captive on the high Seas to bear Arms against their Country, to become the executioners \
of their friends and Brethren, or to fall themselves by their Hands.

In every stage of these Oppressions We have Petitioned for Redress in the most humble terms: Our repeated Petitions have been \
answered only by repeated injury. A Prince whose character is thus marked by every act which may define a Tyrant, is unfit to be the \
ruler of a free people.

Nor have We been wanting in attentions to our Brittish brethren. We have warned them from time to time of attempts by their \
legislature to extend an unwarrantable jurisdiction over us. We have reminded them of the circumstances of our emigration and \
settlement here. We have appealed to their native justice and magnanimity, and we have conjured them by the ties of our common \
kindred to disavow these usurpations, which, would inevitably interrupt our connections and correspondence. They too have been deaf \
to the voice of justice and of consanguinity. We must, therefore, acquiesce in the necessity, which denounces our Separation, and \
hold them, as we hold the rest of mankind, Enemies in War, in Peace Friends.

We, therefore, the Representatives of the united States of America, in General Congress, Assembled, appealing to the Supreme Judge \
of the world for the rectitude of our intentions, do, in the Name, and by Authority of the good People of these Colonies, solemnly \
publish and declare, That these United Colonies are, and of Right ought to be Free and Independent States; that they are Absolved \
from all Allegiance to the British Crown, and that all political connection between them and the State of Great Britain, is and \
ought to be totally dissolved; and that as Free and Independent States, they have full Power to levy War, conclude Peace, contract \
Alliances, establish Commerce, and to do all other Acts and Things which Independent States may of right do. And for the support of \
this Declaration, with a firm reliance on the protection of divine Providence, we mutually pledge to each other our Lives, our \
Fortunes and our sacred Honor.
"""

_PYTHON = '''\
from __future__ import annotations

import heapq
from collections import defaultdict


def shortest_paths(edges: list[tuple[str, str, float]], start: str) -> dict[str, float]:
    """Dijkstra's algorithm over a directed graph given as (source, target, weight) triples."""
    graph: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
    for source, target, weight in edges:
        if weight < 0:
            raise ValueError(f"negative weight {weight!r} on {source} -> {target}")
        graph[source].append((target, weight))
    distances = {start: 0.0}
    queue = [(0.0, start)]
    while queue:
        distance, node = heapq.heappop(queue)
        if distance > distances[node]:
            continue
        for target, weight in graph[node]:
            candidate = distance + weight
            if candidate < distances.get(target, float("inf")):
                distances[target] = candidate
                heapq.heappush(queue, (candidate, target))
    return distances


if __name__ == "__main__":
    print(shortest_paths([("a", "b", 1.5), ("b", "c", 2), ("a", "c", 10)], start="a"))  # {'a': 0.0, 'b': 1.5, 'c': 3.5}
'''

_UNICODE = """\
Grüße aus Zürich! Ça coûte 12,50 €, n'est-ce pas? El niño pequeño comió piñas. Привет, мир — как дела? Γειά σου Κόσμε. \
你好，世界！今天的天气很好，我们去公园散步吧。 こんにちは、世界。今日はいい天気ですね。 안녕하세요, 세계! مرحبا بالعالم. שלום עולם. \
नमस्ते दुनिया। Emoji: 🙂🚀👩‍👩‍👧‍👦🇨🇭 and maths: ∀x∈ℝ: x² ≥ 0, ∑ᵢ₌₁ⁿ i = n(n+1)/2, √2 ≈ 1.41421. Zażółć gęślą jaźń.
"""

_JSON = """\
{
  "id": 48213,
  "name": "Coffee grinder",
  "price": 129.95,
  "tags": ["kitchen", "steel", null, true],
  "dimensions": {"height_mm": 310, "width_mm": 125, "weight_kg": 2.75},
  "reviews": [
    {"user": "m.keller", "stars": 5, "text": "Quiet, even grind, easy to clean."},
    {"user": "anna_1987", "stars": 3, "text": "Good, but the lid broke after 6 months."}
  ],
  "next": "https://example.com/products/48214?ref=list&page=2#reviews"
}
"""

_STORY = """\
The lighthouse keeper had not spoken to anyone for eleven days when the boat came in. It was a small boat, painted green, and it \
rode low in the water as if it carried something heavy. He put down his cup and walked to the door. The wind had dropped in the \
night, and for the first time in weeks he could hear the gulls. A woman stood in the bow with a rope in her hand. She did not wave. \
She looked at the rocks, then at the tower, then at him, and it seemed to him that she was counting something. "You are early," he \
called, because it was the only thing that came into his mind. "The relief is not due before the first of the month." She threw the \
rope, and he caught it without thinking, as he had caught a thousand ropes before. "There will be no relief," she said. "They have \
closed the station. They closed all of them, up and down the coast, on the same day. I have come to take you home, if you want to \
come." He held the rope and looked up at the lamp. It had burned every night for one hundred and forty years. His father had lit it, \
and his father's father, and there was oil in the store for another winter. He tried to imagine the bay without it, and found that \
he could not: in his mind the beam went round and round, over the water, over the sleeping villages, patient as a clock. "What did \
they say about the light?" he asked at last. The woman sat down on the edge of the boat and took off her gloves. "They said that \
nobody needs it any more," she answered. "Every ship knows where it is now. There is a machine that tells them." He thought about \
this for a long time. Then he tied the rope to the iron ring, gave her his hand, and helped her up onto the stones. "Come in," he \
said, "there is soup. It will be dark in an hour, and I would like to show you something before we decide." They climbed the stairs \
together, all two hundred and six of them, and neither of them spoke until they stood beside the great lens and the whole of the \
grey sea lay open below.
"""

# (name, text, number of tokens to keep; None keeps all): lengths below, at and above block (16) and chunk boundaries.
SMOLLM2: tuple[tuple[str, str, int | None], ...] = (
    ("one token", "The", 1),
    ("five tokens", "The capital of France is Paris, and", 5),
    ("one block", "Once upon a time there was a small dog who lived in a very big house near the sea.", 16),
    ("one block and one", "Water boils at 100 degrees Celsius at sea level, but on a high mountain it boils sooner.", 17),
    (
        "chat",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nName three primary colours, please.<|im_end|>\n",
        None,
    ),
    ("unicode", _UNICODE, None),
    ("json", _JSON, None),
    ("python", _PYTHON, None),
    ("story", _STORY, 400),
    ("declaration", DECLARATION, 1500),
)

# Gemma 3's sliding window is 512 tokens; the last prompt crosses it.
GEMMA3: tuple[tuple[str, str, int | None], ...] = (
    ("fact", "The capital of France is", None),
    ("python", _PYTHON, None),
    (
        "languages",
        "English: Good morning, how are you?\nDeutsch: Guten Morgen, wie geht es dir?\nFrançais: Bonjour, ça va ?\nEspañol:",
        None,
    ),
    ("declaration", DECLARATION, 700),
)


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


# Chosen so that no greedy choice on the way is closer than numeric noise could decide (the smallest gap is recorded with each).
CHATS: tuple[list[dict[str, Any]], ...] = (
    _user("What is the capital of France?"),
    _user("Hello!"),
    _user("Explain in two sentences why the sky is blue."),
    _user("Write a haiku about autumn leaves."),
    _user("List five fruits that are red."),
    _user("What is 17 + 25?"),
    _user("Translate 'good morning' into German and Spanish."),
    _user("Write a Python function that reverses a string."),
    _user("Summarize the story of Little Red Riding Hood in three sentences."),
    _user("How do I make a cup of green tea?"),
    [{"role": "system", "content": "You are a pirate. Answer like one."}, {"role": "user", "content": "Where did you hide the gold?"}],
    [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": "What is gravity?"}],
    [
        {"role": "user", "content": "My name is Clara."},
        {"role": "assistant", "content": "Nice to meet you, Clara! How can I help you today?"},
        {"role": "user", "content": "What is my name?"},
    ],
    [
        {"role": "system", "content": "You are a patient teacher of mathematics."},
        {"role": "user", "content": "What is a prime number?"},
        {"role": "assistant", "content": "A prime number is a whole number greater than 1 whose only divisors are 1 and itself."},
        {"role": "user", "content": "Give me the first five of them."},
    ],
    _user("Wie heißt die Hauptstadt von Österreich?"),
    _user("请用一句话介绍长城。"),
    _user("Fix this sentence: 'He go to school yesterday and forgetted him book.' 🙂"),
    _user("Correct this JSON:\n```json\n{'a': 1, 'b': [1, 2,],}\n```"),
    _user("Give me a title for a blog post about urban gardening, and three bullet points that the post should cover."),
    _user("Here is a text:\n\n" + _STORY[:900] + "\n\nWho came to the lighthouse, and why?"),
)

TRICKY: tuple[str, ...] = (
    "",
    " ",
    "a",
    "Hello, world!",
    "  leading and trailing spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "It's we've they'll I'm you'd DON'T",
    "1234567890 3.14159 1,000,000 0x1F 2024-12-31",
    "CamelCaseIdentifier snake_case_identifier kebab-case SCREAMING_CASE",
    "https://example.com/a/b?c=d&e=f#g user@example.org",
    "naïve café — “quoted” ‘single’ … €100 ½",
    "cafe\u0301 versus caf\u00e9",
    "Привет мир, Γειά σου, שלום, مرحبا",
    "你好，世界！こんにちは 안녕하세요 नमस्ते",
    "🙂🚀 👩‍👩‍👧‍👦 🇨🇭 👍🏽",
    "\u200bzero\u200dwidth\ufeff and \u00a0no-break\u2028separator",
    "\x00\x01\x1b[31mcontrol\x7f",
    "def f(x):\n    return x ** 2  # square\n\tpass",
    "<|im_start|>user\nspecial tokens in text<|im_end|><|endoftext|>",
    "<|im_start|> spaced <|im_end|>  <|not_a_token|> <|im_start",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!!!!!!!! ================",
    "\U00010348\U0001d518 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \ue000 \ufffd",
    "x" * 50 + " " * 33 + "y",
)

# Without the last text: how a run of 33 spaces is cut differs between SentencePiece (longest first) and converted tokenizers.
TRICKY_FOR_GEMMA: tuple[str, ...] = (*TRICKY[:-1], _PYTHON, _JSON, _UNICODE)

RENDERINGS: tuple[list[dict[str, Any]], ...] = (
    CHATS[0],
    CHATS[10],
    CHATS[12],
    CHATS[13],
    [{"role": "system", "content": "Only a system message."}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "  spaces kept  \n\n"}, {"role": "assistant", "content": "So they are: "}],
    [{"role": "user", "content": "markup & \"quotes\" <b>'kept'</b> {{ braces }} {% raw %} \u00e9\U0001f642"}],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}, {"role": "narrator", "content": "three"}],
)

# A template that leans on everything transformers adds to jinja2: trimmed blocks, loop controls, `tojson` without HTML escapes,
# `generation` blocks, namespaces, tools.
RICH_TEMPLATE = """\
{{- bos_token }}
{%- set state = namespace(turns=0) %}
{%- if tools %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
    {%- endfor %}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- set state.turns = state.turns + 1 %}
    {%- if message.role == 'assistant' %}
<assistant>{% generation %}{{ message.content | trim }}{% endgeneration %}{{ eos_token }}
    {% else %}
<{{ message.role }} turn={{ state.turns }}>{{ message['content'] }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}
<assistant>
{%- endif %}
"""

RICH_RENDERINGS: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    (CHATS[12], None),
    ([{"role": "skip", "content": "x"}, *CHATS[13], {"role": "stop", "content": "y"}, {"role": "user", "content": "z"}], None),
    (
        CHATS[0],
        [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "description": "The weather <now> & \"later\", 'é'.",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
                        "required": ["city"],
                    },
                },
            }
        ],
    ),
)
