//===- CostReport.cpp - What prefill-opt cost prints ----------------------===//

#include "CostReport.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/Path.h"

using namespace mlir;
using namespace prefill;

void prefill::printCostTable(raw_ostream &os, const CostReport &p,
                             const CompilerOptions &options) {
  std::vector<std::array<std::string, 11>> cells = {
      {"tokens", "transform", "linear", "attention", "head", "moved", "KV",
       "peak", "time", "", "visited"}};
  cells.push_back({"", "", "GFLOP", "GFLOP", "GFLOP", "GB", "MB", "MB",
                   "seconds", "bound", "blocks"});
  auto number = [](double value, int digits) {
    std::string text;
    llvm::raw_string_ostream(text) << llvm::format("%.*f", digits, value);
    return text;
  };
  std::string uncounted;
  for (const CostRow &row : p.rows) {
    const GraphCost &c = row.cost;
    double visited = 0, total = 0;
    for (const AttentionCost &attention : c.attentions) {
      double weight = double(attention.rows) * double(attention.keys);
      visited += attention.visited * weight;
      total += weight;
    }
    cells.push_back(
        {row.tokens, row.transform, number(c.linear / 1e9, 2),
         number(c.attention / 1e9, 2), number(c.head / 1e9, 2),
         number(c.bytes / 1e9, 2), number(c.kv / 1e6, 1),
         number(c.peak / 1e6, 0), number(c.seconds, c.seconds < 0.1 ? 4 : 2),
         c.computing * 2 >= c.seconds ? "compute" : "memory",
         total > 0 ? number(100 * visited / total, 1) + " %" : "-"});
    if (c.uncounted && uncounted.empty())
      uncounted = row.transform + ": " + std::to_string(c.uncounted) +
                  " operators are not counted, the first " + c.firstUncounted;
  }
  std::array<size_t, 11> widths{};
  for (const auto &row : cells)
    for (size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], row[i].size());
  os << llvm::sys::path::filename(options.input) << " on "
     << p.device.rates.name;
  if (p.device.rates.per_thread)
    os << ", " << p.device.threads << " threads";
  os << " (" << p.device.rates.source << ")\n";
  for (const auto &row : cells) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      bool left = i < 2 || i == 9;
      std::string pad(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (left ? row[i] + pad : pad + row[i]);
    }
    os << StringRef(line).rtrim() << "\n";
  }
  for (const std::string &note : p.notes)
    os << note << "\n";
  if (!uncounted.empty())
    os << uncounted << "\n";
}

void prefill::printCostJSON(raw_ostream &out, const CostReport &p,
                            const CompilerOptions &options) {
  llvm::json::OStream os(out, 2);
  os.object([&] {
    os.attribute("model", llvm::sys::path::filename(options.input));
    os.attributeObject("device", [&] {
      os.attribute("name", p.device.rates.name);
      os.attribute("threads", p.device.threads);
      os.attribute("measured", p.device.rates.measured != 0);
      os.attribute("source", p.device.rates.source);
      os.attribute("linear_flops", p.device.linear());
      os.attribute("bytes_per_second", p.device.bytes(HUGE_VAL));
    });
    os.attributeArray("rows", [&] {
      for (const CostRow &row : p.rows)
        os.object([&] {
          const GraphCost &c = row.cost;
          // Of a pack it is the number of prompts, in words.
          if (int64_t tokens; !StringRef(row.tokens).getAsInteger(10, tokens))
            os.attribute("tokens", tokens);
          else
            os.attribute("batch", row.tokens);
          os.attribute("transform", row.transform);
          os.attributeObject("flops", [&] {
            os.attribute("linear", c.linear);
            os.attribute("attention", c.attention);
            os.attribute("head", c.head);
          });
          os.attribute("bytes", c.bytes);
          os.attribute("kv_bytes", c.kv);
          os.attribute("weight_bytes", c.weights);
          os.attribute("peak_bytes", c.peak);
          os.attribute("seconds", c.seconds);
          os.attribute("compute_seconds", c.computing);
          os.attribute("not_counted", c.uncounted);
          os.attributeArray("attentions", [&] {
            for (const AttentionCost &a : c.attentions)
              os.object([&] {
                os.attribute("layer", a.layer);
                os.attribute("rows", a.rows);
                os.attribute("keys", a.keys);
                os.attribute("flops", a.flops);
                os.attribute("visited", a.visited);
                os.attribute("sparse_heads", a.sparse);
              });
          });
        });
    });
    os.attributeArray("notes", [&] {
      for (const std::string &note : p.notes)
        os.value(note);
    });
  });
  out << "\n";
}
