# /// script
# dependencies = [
#     "langchain==1.5.2",
#     "langchain-openai==1.7.4",
#     "langchain-anthropic==1.7.10",
#     "langchain-ollama==1.1.0",
# ]
# ///
"""LangChain: its OpenAI (both APIs), Anthropic and Ollama models, agents, embeddings."""

from checks import Colour, add, check, model, url
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

base = {"model": model, "base_url": url + "/v1", "api_key": "none", "max_tokens": 300}
models = {
    "ChatOpenAI": ChatOpenAI(**base),
    "ChatOpenAI, responses": ChatOpenAI(**base, use_responses_api=True),
    "ChatAnthropic": ChatAnthropic(model=model, base_url=url, api_key="none", max_tokens=300),
    "ChatOllama": ChatOllama(model=model, base_url=url, num_predict=300),
}
for name, llm in models.items():
    asked = {"messages": [{"role": "user", "content": "What is 1+2?"}]}
    check(name, lambda: llm.invoke("Hello").content)
    check(f"{name}, stream", lambda: list(llm.stream("Hello")))
    check(f"{name}, with_structured_output", lambda: llm.with_structured_output(Colour).invoke("Red."))
    if name != "ChatOllama":  # whose API has no way to force a call
        check(
            f"{name}, bind_tools", lambda: llm.bind_tools([add], tool_choice="any").invoke("1+2").tool_calls
        )
    check(f"{name}, create_agent", lambda: create_agent(llm, [add]).invoke(asked)["messages"][-1])
vectors = OpenAIEmbeddings(
    model=model, base_url=url + "/v1", api_key="none", check_embedding_ctx_length=False
)
check("600 embeddings", lambda: vectors.embed_documents(["a"] * 600)[599])
