"""Clients that people use against `cutaway serve`, unchanged, each in an environment of its own.

    python -m scripts.clients_served

makes a virtual environment in --folder (some 500 MB, a few minutes, once), installs PINS into it, starts a
server with SmolLM2 and prints the table of docs/serving.md: client, version, what works, what does not and why.
The exit code is 1 if anything failed. A check fails where the client raises, or its answer is empty; calls are
forced, so that they do not depend on what a small model chooses. Takes three minutes once installed.
"""

# ruff: noqa: E501 (the checks are one line each)

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

from scripts.served import served

PINS = (
    "openai==2.54.0",
    "anthropic==2.14.0",
    "ollama==0.6.3",
    "litellm==1.110.2",
    "langchain-openai==1.4.3",
    "langchain-anthropic==1.7.10",
    "langchain-ollama==1.1.0",
    "instructor==1.17.0",
    "pydantic-ai-slim[openai]==2.31.1",
    "openai-agents==0.20.0",
)
BEFORE = """
import json, sys, importlib.metadata
url, results = sys.argv[1], []
model, hello = "smollm2", [{"role": "user", "content": "Say hello."}]
def add(a: int, b: int) -> int:
    "Adds two whole numbers."
    return a + b
schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": schema}}
from pydantic import BaseModel
class Colour(BaseModel):
    name: str
    red: int
def check(name):
    def run(work):
        try:
            assert work(), "the answer is empty"
            results.append([name, None])
        except Exception as error:
            results.append([name, f"{type(error).__name__}: {error}".replace("\\n", " ")[:200]])
    return run
"""
CHECKS = {
    "openai": """
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    chat = client.chat.completions
    check("chat")(lambda: chat.create(model=model, messages=hello, max_tokens=9).choices[0].message.content)
    check("stream")(lambda: [1 for c in chat.create(model=model, messages=hello, max_tokens=9, stream=True)])
    check("parse")(lambda: chat.parse(model=model, messages=hello, response_format=Colour, max_tokens=300).choices[0].message.parsed)
    check("tools")(lambda: chat.create(model=model, messages=hello, tools=[tool], tool_choice="required", max_tokens=99).choices[0].message.tool_calls)
    check("responses")(lambda: client.responses.create(model=model, input="Hello", max_output_tokens=9).output_text)
    check("responses, parse")(lambda: client.responses.parse(model=model, input="Hello", text_format=Colour, max_output_tokens=300).output_parsed)
    check("embeddings")(lambda: client.embeddings.create(model=model, input=["a"] * 600, extra_body={"pooling": "mean"}).data)
    """,
    "anthropic": """
    import anthropic
    client = anthropic.Anthropic(base_url=url, api_key="none")
    named = {"name": "add", "input_schema": schema}
    def streamed():
        with client.messages.stream(model=model, messages=hello, max_tokens=9) as stream:
            return stream.get_final_text()
    check("messages")(lambda: client.messages.create(model=model, messages=hello, max_tokens=9).content[0].text)
    check("stream")(streamed)
    check("tools")(lambda: client.messages.create(model=model, messages=hello, max_tokens=99, tools=[named], tool_choice={"type": "any"}).content[0].input)
    check("count_tokens")(lambda: client.messages.count_tokens(model=model, messages=hello).input_tokens)
    """,
    "ollama": """
    import ollama
    client = ollama.Client(host=url)
    few = {"num_predict": 9}
    check("chat")(lambda: client.chat(model=model, messages=hello, options=few).message.content)
    check("stream")(lambda: list(client.chat(model=model, messages=hello, options=few, stream=True)))
    check("format")(lambda: Colour.model_validate_json(client.chat(model=model, messages=hello, format=Colour.model_json_schema()).message.content))
    check("tools")(lambda: client.chat(model=model, messages=hello, tools=[add], options=few).message)
    check("generate")(lambda: client.generate(model=model, prompt="Hello", options=few).response)
    check("list, show, ps")(lambda: client.list().models and client.show(model).capabilities and client.ps().models)
    """,
    "litellm": """
    import litellm
    litellm.telemetry = False
    for kind, base in (("openai", url + "/v1"), ("anthropic", url), ("ollama_chat", url)):
        asked = {"model": f"{kind}/{model}", "api_base": base, "api_key": "none", "messages": hello, "max_tokens": 9}
        check(f"{kind}")(lambda: litellm.completion(**asked).choices[0].message.content)
        check(f"{kind}, stream")(lambda: list(litellm.completion(**asked, stream=True)))
    """,
    "langchain-openai": """
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    llm = ChatOpenAI(model=model, base_url=url + "/v1", api_key="none", max_tokens=300)
    check("invoke")(lambda: llm.bind(max_tokens=9).invoke("Hello").content)
    check("stream")(lambda: list(llm.bind(max_tokens=9).stream("Hello")))
    check("with_structured_output")(lambda: llm.with_structured_output(Colour).invoke("Red."))
    check("bind_tools")(lambda: llm.bind_tools([add], tool_choice="required").invoke("1+2").tool_calls)
    vectors = OpenAIEmbeddings(model=model, base_url=url + "/v1", api_key="none", check_embedding_ctx_length=False,
                               model_kwargs={"extra_body": {"pooling": "mean"}})
    check("600 embeddings")(lambda: vectors.embed_documents(["a"] * 600))
    """,
    "langchain-anthropic": """
    from langchain_anthropic import ChatAnthropic
    llm = ChatAnthropic(model=model, base_url=url, api_key="none", max_tokens=300)
    check("invoke")(lambda: llm.bind(max_tokens=9).invoke("Hello").content)
    check("stream")(lambda: list(llm.bind(max_tokens=9).stream("Hello")))
    check("with_structured_output")(lambda: llm.with_structured_output(Colour).invoke("Red."))
    check("bind_tools")(lambda: llm.bind_tools([add], tool_choice="any").invoke("1+2").tool_calls)
    """,
    "langchain-ollama": """
    from langchain_ollama import ChatOllama
    llm = ChatOllama(model=model, base_url=url, num_predict=300)
    check("invoke")(lambda: llm.invoke("Hello").content)
    check("stream")(lambda: list(llm.stream("Hello")))
    check("with_structured_output")(lambda: llm.with_structured_output(Colour).invoke("Red."))
    """,
    "instructor": """
    import instructor, openai
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=url + "/v1", api_key="none"), mode=mode)
        check(mode.name)(lambda: client.chat.completions.create(model=model, messages=hello, response_model=Colour, max_tokens=300))
    """,
    "pydantic-ai-slim": """
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    made = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url + "/v1", api_key="none"))
    few = {"max_tokens": 300}
    check("run")(lambda: Agent(made, model_settings=few).run_sync("Hello").output)
    check("output by a tool")(lambda: Agent(made, output_type=Colour, model_settings=few).run_sync("Red.").output)
    check("native output")(lambda: Agent(made, output_type=NativeOutput(Colour), model_settings=few).run_sync("Red.").output)
    """,
    "openai-agents": """
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, set_tracing_disabled
    from openai import AsyncOpenAI
    set_tracing_disabled(True)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
        agent = Agent(name="a", model=kind(model=model, openai_client=client), model_settings=ModelSettings(max_tokens=60))
        check(kind.__name__)(lambda: Runner.run_sync(agent, "Hello").final_output)
    """,
}  # fmt: skip


def environment(folder: Path) -> Path:
    """The Python of an environment with the clients, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def checked(python: Path, client: str, url: str) -> tuple[str, list[tuple[str, str | None]]]:
    """A client's version, and of each check its name and why it failed."""
    version = f"importlib.metadata.version({client!r})"
    code = BEFORE + textwrap.dedent(CHECKS[client]) + f"print(json.dumps([{version}, results]))"
    done = subprocess.run([python, "-c", code, url], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return "", [("import", done.stderr.strip().splitlines()[-1][:200])]
    version, results = json.loads(done.stdout.splitlines()[-1])
    return version, results


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cutaway-clients"))
    python, failed = environment(parser.parse_args().folder), False
    print("| client | version | works | does not |\n|---|---|---|---|")
    with served() as url:
        for client in CHECKS:
            version, results = checked(python, client, url)
            works = ", ".join(name for name, why in results if why is None)
            wrong = "; ".join(f"{name}: {why}" for name, why in results if why is not None)
            failed = failed or bool(wrong)
            print(f"| {client} | {version} | {works} | {wrong} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
