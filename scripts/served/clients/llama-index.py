# /// script
# dependencies = [
#     "llama-index-llms-openai-like==0.8.1",
#     "llama-index-embeddings-openai-like==0.4.0",
#     "llama-index-llms-ollama==0.11.0",
# ]
# ///
"""LlamaIndex: OpenAILike, Ollama, structured predictions, embeddings."""

from checks import Colour, add, check, model, url
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike

hello = [ChatMessage(role="user", content="Say hello.")]
base = {"model": model, "api_base": url + "/v1", "api_key": "none"}
like = OpenAILike(**base, is_chat_model=True, is_function_calling_model=True, max_tokens=99)
red = PromptTemplate("Red.")
check("complete", lambda: like.complete("Hello").text)
check("chat", lambda: like.chat(hello).message.content)
check("stream_chat", lambda: list(like.stream_chat(hello)))
check("structured_predict", lambda: like.structured_predict(Colour, red))
tools = [FunctionTool.from_defaults(add)]
check("chat_with_tools", lambda: like.chat_with_tools(tools, "1+2", tool_required=True).message.blocks)
local = Ollama(model=model, base_url=url, additional_kwargs={"num_predict": 99}, request_timeout=120)
check("Ollama, chat", lambda: local.chat(hello).message.content)
check("Ollama, stream_chat", lambda: list(local.stream_chat(hello)))
vectors = OpenAILikeEmbedding(model_name=model, api_base=url + "/v1", api_key="none")
check("embeddings", lambda: vectors.get_text_embedding_batch(["a", "b"]))
