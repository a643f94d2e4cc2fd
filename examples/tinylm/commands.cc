#include "examples/tinylm/commands.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/tinylm/decoder.h"
#include "examples/tinylm/engine_attention.h"
#include "examples/tinylm/eval_set.h"
#include "examples/tinylm/model.h"
#include "examples/tinylm/needle_eval.h"
#include "examples/tinylm/report.h"
#include "examples/tinylm/status_macros.h"
#include "examples/tinylm/tokenizer.h"
#include "examples/tinylm/trace_recorder.h"
#include "tools/progress_bar.h"
#include "wavekv/engine.h"
#include "wavekv/executor.h"

namespace tinylm {
namespace {

using wavekv::AttendOptions;

// Queries of the end of a text that a trace holds.
constexpr int64_t kTraceQueries = 128;

// The model and wavekv share their threads: they never compute at the same time.
struct Runtime {
  std::shared_ptr<wavekv::Executor> executor;
  std::unique_ptr<Model> model;
};

absl::StatusOr<Runtime> LoadRuntime(const Arguments& arguments) {
  const int num_processors = static_cast<int>(std::thread::hardware_concurrency());
  const int num_threads = arguments.threads > 0 ? arguments.threads : std::max(1, num_processors);
  Runtime runtime;
  runtime.executor = wavekv::MakeThreadPool(num_threads);
  TINYLM_ASSIGN_OR_RETURN(runtime.model, Model::Load(arguments.model_directory, runtime.executor));
  return runtime;
}

absl::StatusOr<Tokenizer> LoadTokenizer(const Arguments& arguments, const Model& model) {
  return Tokenizer::Load(arguments.model_directory + "/tokenizer.model", model.config().vocab_size);
}

absl::StatusOr<EvalSet> LoadEvalSet(const Arguments& arguments, const Model& model) {
  return ReadEvalSet(
      absl::StrCat(arguments.model_directory, "/eval_L", arguments.context, ".safetensors"),
      model.config().vocab_size);
}

absl::Status ReadWithProgress(absl::Span<const int32_t> tokens, Decoder* decoder) {
  wavekv::ProgressBar bar("reading", static_cast<int64_t>(tokens.size()), "tokens");
  return decoder->Read(tokens, [&](int64_t count) { bar.Update(count); });
}

absl::StatusOr<std::string> ReadPromptText(const std::string& path) {
  std::ifstream file;
  if (path != "-") file.open(path, std::ios::binary);
  std::istream& input = path == "-" ? std::cin : file;
  std::string text;
  for (char buffer[4096]; input.read(buffer, sizeof(buffer)) || input.gcount() > 0;) {
    text.append(buffer, input.gcount());
  }
  // A folder opens, but cannot be read.
  if (input.bad() || (path != "-" && !file.is_open())) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot read the prompt"));
  }
  // The line break which editors leave at the end of a file is no part of the text.
  const size_t last = text.find_last_not_of("\r\n");
  text.resize(last == std::string::npos ? 0 : last + 1);
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": the prompt is empty"));
  return text;
}

// Continues the text and prints the words as they come; `tokens` gets what was generated and read.
absl::Status Generate(const Tokenizer& tokenizer, int max_tokens, Decoder* decoder,
                      std::vector<int32_t>* tokens) {
  TokenStream stream(&tokenizer);
  for (int i = 0; i < max_tokens && decoder->next_token() != tokenizer.eos(); ++i) {
    const int32_t token = decoder->next_token();
    TINYLM_ASSIGN_OR_RETURN(const std::string text, stream.Next(token));
    std::cout << text << std::flush;
    TINYLM_RETURN_IF_ERROR(decoder->Step(token));
    tokens->push_back(token);
  }
  std::cout << std::endl;
  return absl::OkStatus();
}

wavekv::TierOptions TiersOf(const Arguments& arguments, const Model& model, int64_t num_tokens) {
  wavekv::TierOptions tiers;
  tiers.directory = arguments.tiers.directory;
  if (tiers.directory.empty()) return tiers;
  const wavekv::ModelSpec spec = model.config().kv_spec();
  tiers.cache_bytes =
      num_tokens * spec.num_layers * spec.token_bytes() * arguments.tiers.dram_pct / 100;
  return tiers;
}

}  // namespace

absl::Status RunDemo(const Arguments& arguments) {
  TINYLM_ASSIGN_OR_RETURN(Runtime runtime, LoadRuntime(arguments));
  TINYLM_ASSIGN_OR_RETURN(const Tokenizer tokenizer, LoadTokenizer(arguments, *runtime.model));
  TINYLM_ASSIGN_OR_RETURN(const EvalSet set, LoadEvalSet(arguments, *runtime.model));
  TINYLM_ASSIGN_OR_RETURN(
      const std::unique_ptr<wavekv::Engine> engine,
      OpenEngine(runtime.model->config(), arguments.context, runtime.executor,
                 TiersOf(arguments, *runtime.model, arguments.context), arguments.device));
  NeedleEvalOptions options;
  options.tasks = arguments.tasks;
  options.questions_per_task = arguments.prompts;
  options.wave = arguments.wave;
  TINYLM_ASSIGN_OR_RETURN(const std::vector<NeedleResult> results,
                          RunNeedleEval(set, options, runtime.model.get(), engine.get()));

  NeedleResult all;
  for (const NeedleResult& result : results) {
    TINYLM_ASSIGN_OR_RETURN(const std::string question,
                            DescribeQuestion(result.questions.front(), tokenizer));
    std::cout << question << "\n";
    all.Add(result);
  }
  std::cout << ResultTable(arguments.context, options.tasks, results) << "\n"
            << ResultLine(arguments.context, all) << std::endl;
  return absl::OkStatus();
}

absl::Status RunPrompt(const Arguments& arguments) {
  TINYLM_ASSIGN_OR_RETURN(const std::string text, ReadPromptText(arguments.prompt_file));
  TINYLM_ASSIGN_OR_RETURN(Runtime runtime, LoadRuntime(arguments));
  TINYLM_ASSIGN_OR_RETURN(const Tokenizer tokenizer, LoadTokenizer(arguments, *runtime.model));
  TINYLM_ASSIGN_OR_RETURN(const std::vector<int32_t> words, tokenizer.Encode(text));
  std::vector<int32_t> tokens = {tokenizer.bos()};
  tokens.insert(tokens.end(), words.begin(), words.end());
  const auto num_prompt_tokens = static_cast<int64_t>(tokens.size());
  const int64_t num_tokens = num_prompt_tokens + arguments.max_tokens;

  TINYLM_ASSIGN_OR_RETURN(
      const std::unique_ptr<wavekv::Engine> engine,
      OpenEngine(runtime.model->config(), num_tokens, runtime.executor,
                 TiersOf(arguments, *runtime.model, num_tokens), arguments.device));
  TINYLM_ASSIGN_OR_RETURN(wavekv::Tenant tenant, engine->OpenTenant("prompt"));
  TINYLM_ASSIGN_OR_RETURN(const wavekv::Sequence sequence, tenant.CreateSequence());
  EngineAttention attention(engine.get(), sequence, AttendOptions::Exact());
  TraceRecorder recorder(runtime.model->config(),
                         std::max<int64_t>(0, num_prompt_tokens - kTraceQueries), &attention);
  const bool record = !arguments.trace_file.empty();
  Decoder decoder(runtime.model.get(), record ? static_cast<Attention*>(&recorder)
                                              : static_cast<Attention*>(&attention));
  TINYLM_RETURN_IF_ERROR(ReadWithProgress(tokens, &decoder));
  // The same text then gets the same words, however fast the builds are.
  TINYLM_RETURN_IF_ERROR(engine->BuildSegments(sequence));
  TINYLM_RETURN_IF_ERROR(engine->WaitForBuilds(sequence));

  attention.clear_totals();
  if (!arguments.dense) attention.set_options(arguments.wave);
  const auto start = std::chrono::steady_clock::now();
  TINYLM_RETURN_IF_ERROR(Generate(tokenizer, arguments.max_tokens, &decoder, &tokens));
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - start;
  const int64_t num_generated = static_cast<int64_t>(tokens.size()) - num_prompt_tokens;
  std::cerr << absl::StrFormat(
      "prompt_tokens=%d generated_tokens=%d attention=%s ms_per_token=%.2f exact_tokens_pct=%.2f "
      "bytes_pct=%.2f\n",
      num_prompt_tokens, num_generated, arguments.dense ? "dense" : "wavekv",
      elapsed.count() / static_cast<double>(std::max<int64_t>(1, num_generated)),
      100 * attention.totals().exact_tokens_share(), 100 * attention.totals().bytes_share());
  return record ? recorder.Write(arguments.trace_file, tokens, num_prompt_tokens)
                : absl::OkStatus();
}

absl::Status RunTrace(const Arguments& arguments) {
  TINYLM_ASSIGN_OR_RETURN(Runtime runtime, LoadRuntime(arguments));
  TINYLM_ASSIGN_OR_RETURN(const EvalSet set, LoadEvalSet(arguments, *runtime.model));
  if (arguments.document >= static_cast<int>(set.documents.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--document: expected 0 to ", set.documents.size() - 1, ", got ", arguments.document));
  }
  const std::vector<int32_t>& tokens = set.documents[arguments.document];
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  TINYLM_ASSIGN_OR_RETURN(
      const std::unique_ptr<wavekv::Engine> engine,
      OpenEngine(runtime.model->config(), num_tokens, runtime.executor,
                 TiersOf(arguments, *runtime.model, num_tokens), arguments.device));
  TINYLM_ASSIGN_OR_RETURN(wavekv::Tenant tenant, engine->OpenTenant("trace"));
  TINYLM_ASSIGN_OR_RETURN(const wavekv::Sequence sequence, tenant.CreateSequence());
  EngineAttention attention(engine.get(), sequence, AttendOptions::Exact());
  TraceRecorder recorder(runtime.model->config(), num_tokens - kTraceQueries, &attention);
  Decoder decoder(runtime.model.get(), &recorder);
  TINYLM_RETURN_IF_ERROR(ReadWithProgress(tokens, &decoder));
  return recorder.Write(arguments.trace_file, tokens, num_tokens);
}

}  // namespace tinylm
