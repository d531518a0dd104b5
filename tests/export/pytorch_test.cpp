// pytorch_test.cpp: PyTorch files. Tensors are read by name from every kind of nesting and with every naming scheme of
// a Llama, and give the logits of the same weights. Pickles that call functions, bombs and invalid archives are
// rejected.
#include "../support/allocation_limit.hpp"
#include "../support/pytorch_files.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../../export/open_checkpoint.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace pytorch_test {

using namespace pocket;
using Json = nlohmann::json;
using pytorch::Member;
using pytorch::NamedTensor;
using pytorch::Pickle;
using tiny::Floats;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string raw(const Floats& numbers) {
  return std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * 4);
}

// ---- Single files ----

/// The tensors of a file, or the error.
struct Opened {
  TemporaryFolder folder;
  FoundTensors tensors;
  std::unique_ptr<InputFile> file;
  std::string error;
  bool ok = false;

  explicit Opened(const std::string& bytes) {
    const std::string path = folder.write("m.pt", bytes);
    file = InputFile::open(path, error);
    PyTorchFile reader(*file);
    ok = reader.read(0, tensors);
    error = reader.error;
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || error.rfind(path + ": ", 0) == 0) << error;
    error = error.substr(std::min(error.size(), path.size() + 2));
  }
  Floats read(const std::string& name) {
    const FoundTensor& t = tensors.at(name);
    Checkpoint c;
    c.files.push_back(InputFile::open(file->path(), error));
    const int64_t count = int64_t(t.bytes) / dtype_info(t.dtype).block_bytes;
    c.tensors["t"] = {0, t.offset, t.dtype, 1, count};
    Floats out(static_cast<size_t>(count));
    EXPECT_TRUE(c.read_rows("t", 0, 1, out.data(), error)) << error;
    return out;
  }
};

std::string error_of(const std::string& bytes) { return Opened(bytes).error; }
std::string error_of_pickle(const std::string& pickle, const std::vector<std::string>& storages = {}) {
  return error_of(pytorch::zip_of(pytorch::members_of(pickle, storages)));
}

const Floats kSix = {1, -2, 3.5f, 0.25f, 1e-30f, -6};

NamedTensor six(const std::string& name = "w") { return {name, {2, 3}, raw(kSix)}; }

TEST(PyTorchFile, ReadsTensorsByName) {
  Opened f(pytorch::save({six("a.weight"), {"b", {}, raw({7})}, {"empty", {0, 4}, ""}, {"c", {3, 1}, raw({1, 2, 3})}}));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.tensors.size(), 4u);
  EXPECT_EQ(f.tensors.at("a.weight").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(f.read("a.weight"), kSix);
  EXPECT_EQ(f.tensors.at("b").shape, std::vector<int64_t>{});
  EXPECT_EQ(f.read("b"), Floats{7});
  EXPECT_EQ(f.read("c"), (Floats{1, 2, 3}));
  EXPECT_EQ(f.tensors.at("empty").bytes, 0u);
}

TEST(PyTorchFile, Reads16BitFloats) {
  const uint16_t f16[] = {0x3c00, 0xc000, 0x7bff, 1}, bf16[] = {0x3f80, 0xc000, 0x4049, 0x0080};
  const std::string half(reinterpret_cast<const char*>(f16), 8), brain(reinterpret_cast<const char*>(bf16), 8);
  Opened f(pytorch::save({{"h", {4}, half, "HalfStorage", 2}, {"b", {2, 2}, brain, "BFloat16Storage", 2}}));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.read("h"), (Floats{1, -2, 65504, 0x1p-24f}));
  EXPECT_EQ(f.read("b"), (Floats{1, -2, 3.140625f, 0x1p-126f}));
}

TEST(PyTorchFile, RejectsOtherTypes) {
  for (const std::string type : {"DoubleStorage", "LongStorage", "BoolStorage", "ByteStorage"})
    EXPECT_EQ(error_of(pytorch::save({{"w", {1}, std::string(8, '\1'), type, 8}})),
              "tensor w: type: expected float32, float16 or bfloat16, found torch." + type);
}

TEST(PyTorchFile, FindsNestedDictionaries) {
  using Inner = std::function<void()>;
  const auto under = [](const std::string& key) {
    return [key](Pickle& p, const Inner& inner) { p.op("}").text(key), inner(), p.op("s"); };
  };
  for (const char* key : {"model", "state_dict", "model_state_dict", "module"}) {
    Opened f(pytorch::save({six()}, under(key)));
    ASSERT_EQ(f.error, "") << key;
    EXPECT_EQ(f.read("w"), kSix);
  }
  // A training checkpoint: an optimizer with its own tensors, numbers, lists, a tensor beside the model
  const NamedTensor moment = {"moment", {2}, raw({8, 9})};
  Opened f(pytorch::save({six(), moment}, [&](Pickle& p, const Inner&) {
    p.op("}(").text("optimizer").op("}").integer(0).op("}").text("exp_avg");
    p.tensor("FloatStorage", "1", 2, 0, {2}, {1}).op("ss");
    p.text("steps").op("](").integer(1).integer(-70000).integer(int64_t(1) << 40).op("e");
    p.text("loss").tensor("FloatStorage", "1", 2, 1, {}, {}).text("none").op("N").text("yes").op("\x88");
    p.text("model").global("collections", "OrderedDict").op(")Rq\x01(");
    p.text("_orig_mod.w").global("torch._utils", "_rebuild_parameter").op("(");
    p.tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1}).op("\x88").global("collections", "OrderedDict").op(")RtRu");
    p.op("}").text("_metadata").global("collections", "OrderedDict").op(")Rs").op("b");  // BUILD
    p.text("rate").real(0.5).op("u");
  }));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.tensors.size(), 1u);
  EXPECT_EQ(f.read("w"), kSix) << "without _orig_mod.";
}

TEST(PyTorchFile, ReadsNewerProtocols) {
  Pickle p;
  p.bytes = "\x80\x04\x95";
  pytorch::append(p.bytes, uint64_t(10));
  p.op("}\x94\x8c\x01w").op("\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94((");
  p.op("\x8c\x07storage\x94\x8c\x05torch\x94\x8c\x0c").op("FloatStorage\x94\x93");
  p.op("\x8c\x01").op("0\x8c\x03").op("cpuK\x06tQK\x01").op("K\x02\x85K\x01\x85\x89}tRs");
  Opened f(pytorch::zip_of(pytorch::members_of(p.end(), {raw(kSix)})));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.read("w"), (Floats{-2, 3.5f}));
}

TEST(PyTorchFile, ReadsViewsOfOneStorage) {
  const auto view = [](int64_t first, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    Pickle p;
    p.op("}(").text("first").tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1});
    p.text("w").tensor("FloatStorage", "0", 6, first, shape, strides).op("u");
    return Opened(pytorch::zip_of(pytorch::members_of(p.end(), {raw(kSix)})));
  };
  EXPECT_EQ(view(0, {2, 3}, {3, 1}).read("w"), kSix) << "tied";
  EXPECT_EQ(view(3, {3}, {1}).read("w"), (Floats{0.25f, 1e-30f, -6}));
  EXPECT_EQ(view(2, {1, 2, 1}, {99, 1, 7}).read("w"), (Floats{3.5f, 0.25f})) << "strides of sizes of 1 do not matter";
  EXPECT_EQ(view(6, {0}, {1}).error, "");
  const std::pair<std::vector<int64_t>, std::vector<int64_t>> others[] = {
      {{3, 2}, {1, 3}}, {{2, 2}, {3, 1}}, {{2}, {3}}, {{4}, {0}}};
  for (const auto& [shape, strides] : others)
    EXPECT_EQ(view(0, shape, strides).error,
              "tensor w: expected contiguous elements, found strides " + shape_text(strides) + " for shape " +
                  shape_text(shape) +
                  " (a transposed or sliced view); in Python call .contiguous() on it and save it again");
  for (const auto& [first, shape] : std::vector<std::pair<int64_t, std::vector<int64_t>>>{
           {1, {2, 3}}, {6, {1}}, {7, {0}}, {-1, {1}}, {INT64_MAX, {1}}, {0, {7}}, {0, {int64_t(1) << 40}}})
    EXPECT_TRUE(contains(view(first, shape, pytorch::strides_of(shape)).error,
                         "tensor w: expected to stay within the 6 elements of its storage, found shape "))
        << first;
  const int64_t large = int64_t(1) << 40;
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{large, large}, {large, large, 0}, {INT64_MAX}})
    EXPECT_TRUE(contains(view(0, shape, std::vector<int64_t>(shape.size(), 1)).error, "expected less than 2^62 bytes"));
  EXPECT_EQ(view(0, {0, large, large}, {1, 1, 1}).error, "") << "no elements";
  for (const auto& [shape, strides] :
       {std::pair{std::vector<int64_t>{-1}, std::vector<int64_t>{1}}, {{2}, {-1}}, {{2}, {}}, {{}, {1}}})
    EXPECT_TRUE(contains(view(0, shape, strides).error, "tensor w: shape and strides: expected whole numbers"));
}

TEST(PyTorchFile, RejectsStorageOfWrongSize) {
  for (const int64_t elements : {0, 5, 7, 24, -6, INT32_MAX}) {
    Pickle p;
    p.op("}").text("w").tensor("FloatStorage", "0", elements, 0, {1}, {1}).op("s");
    EXPECT_EQ(error_of_pickle(p.end(), {raw(kSix)}),
              "tensor w: data/0: expected " + std::to_string(elements) + " elements, found 24 bytes");
    EXPECT_EQ(error_of_pickle(p.end()), "tensor w: data/0: expected this member, found none");
  }
}

TEST(PyTorchFile, DescribesOtherContents) {
  const auto pickled = [](const std::function<void(Pickle&)>& put) {
    Pickle p;
    put(p);
    return error_of_pickle(p.end(), {raw(kSix)});
  };
  const std::string expected = "expected a dictionary of tensors (a state_dict), found ";
  EXPECT_EQ(pickled([](Pickle& p) { p.integer(1); }), expected + "an integer");
  EXPECT_EQ(pickled([](Pickle& p) { p.op("N"); }), expected + "None");
  EXPECT_EQ(pickled([](Pickle& p) { p.tensor("FloatStorage", "0", 6, 0, {6}, {1}); }), expected + "a tensor");
  EXPECT_EQ(pickled([](Pickle& p) { p.op("}"); }), expected + "no tensors");
  EXPECT_EQ(pickled([](Pickle& p) { p.op("}").text("a").integer(3).op("s"); }), expected + "no tensors");
  EXPECT_EQ(pickled([](Pickle& p) { p.op("}").text("a\x1b[").op("}s"); }), expected + "a dictionary under a?[");
  EXPECT_EQ(pickled([](Pickle& p) { p.op("}").integer(1).tensor("FloatStorage", "0", 6, 0, {6}, {1}).op("s"); }),
            expected + "a tensor under an integer");
  EXPECT_EQ(error_of(pytorch::save({six(), six()})), "tensor w: expected once, found twice");
}

TEST(PyTorchFile, ReadsMegabyteModels) {
  for (const char* name : {"plain", "pos-emb", "rel-pos", "both-wide"}) {
    NEED_DATA(path, std::string("megabyte/") + name + "/model.pt");
    Opened f(read_file(path));
    ASSERT_EQ(f.error, "");
    const Json config = Json::parse(read_file(data_path(std::string("megabyte/") + name + "/config.json")));
    const Json& args = config.contains("dim") ? config : config.begin().value();
    const int64_t global = args["dim"][0], local = args["dim"][1], patch = args["max_seq_len"][1];
    const std::pair<const char*, std::vector<int64_t>> some[] = {{"start_tokens.0", {global}},
                                                                 {"start_tokens.1", {local}},
                                                                 {"token_embs.1.2.weight", {patch * local}},
                                                                 {"token_embs.1.3.weight", {global, patch * local}},
                                                                 {"transformers.0.layers.0.0.norm.g", {global}},
                                                                 {"transformers.1.norm.g", {local}},
                                                                 {"to_logits.weight", {args["num_tokens"], local}}};
    for (const auto& [tensor, shape] : some) {
      ASSERT_EQ(f.tensors.count(tensor), 1u) << name << " " << tensor;
      EXPECT_EQ(f.tensors.at(tensor).shape, shape) << tensor;
      float sum = 0;
      for (float x : f.read(tensor)) sum += x * x;
      EXPECT_TRUE(sum > 0 && std::isfinite(sum)) << tensor;
    }
    EXPECT_EQ(f.tensors.count("pos_embs.0.weight"), std::string(name) == "pos-emb" || std::string(name) == "both-wide");
    EXPECT_EQ(f.tensors.count("transformers.0.rotary_emb.inv_freq"),
              std::string(name) == "rel-pos" || std::string(name) == "both-wide");
  }
}

// ---- Hostile pickles ----

TEST(Pickle, RejectsFunctionsWithoutCallingThem) {
  const TemporaryFolder folder;
  const std::string trace = folder.file("it-ran"), command = "touch " + trace;
  const auto refused = [&](const std::string& pickle, const std::string& expected) {
    const std::string error = error_of_pickle(pickle);
    EXPECT_TRUE(contains(error, expected)) << error;
    EXPECT_FALSE(std::filesystem::exists(trace));
  };
  for (const auto& [module, name] : {std::pair{"os", "system"},
                                     {"posix", "system"},
                                     {"builtins", "eval"},
                                     {"__builtin__", "exec"},
                                     {"subprocess", "Popen"},
                                     {"torch.hub", "load"},
                                     {"torch._utils", "_rebuild_tensor_v2.__globals__"},
                                     {"torch.serialization", "load"},
                                     {"torch", "FloatStorage.from_file"},
                                     {"torch", "XStorage"},
                                     {"", ""}}) {
    const std::string expected = "expected tensors and plain data, found the function " + std::string(module) + "." +
                                 name + ", which Python would call; this program calls no functions";
    refused(Pickle().global(module, name).op("(").text(command).op("tR").end(), expected);
    refused(Pickle().text(module).text(name).op("\x93\x85R").end(), expected);
    refused(Pickle().op("}").text("w").global(module, name).op("(").text(command).op("tRs").end(), expected);
  }
  // Other ways to call: INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, and the text protocol
  const std::pair<std::string, const char*> opcodes[] = {{"(\x8c\1aios\nsystem\n", "0x69"},
                                                         {std::string("(cos\nsystem\no"), "the function os.system"},
                                                         {"))\x81", "0x81"},
                                                         {"))}\x92", "0x92"},
                                                         {"\x82\x01", "0x82"},
                                                         {"(S'x'\n", "0x53"},
                                                         {"Pid\n", "0x50"}};
  for (const auto& [op, expected] : opcodes) refused(Pickle().op(op).end(), expected);
}

TEST(Pickle, ChecksArgumentsOfKnownFunctions) {
  const auto error = [](const std::function<void(Pickle&)>& put) {
    Pickle p;
    put(p);
    return error_of_pickle(p.end(), {raw(kSix)});
  };
  const auto call = [&](const std::string& module, const std::string& name, const std::string& arguments) {
    return error([&](Pickle& p) { p.global(module, name).op(arguments + "R"); });
  };
  EXPECT_TRUE(contains(call("collections", "OrderedDict", "K\1\x85"), "expected other arguments of collections."));
  EXPECT_TRUE(contains(call("torch", "FloatStorage", ")"), "expected other arguments of torch.FloatStorage"));
  EXPECT_TRUE(contains(call("torch", "Size", ")"), "expected other arguments of torch.Size"));
  EXPECT_TRUE(contains(call("torch._utils", "_rebuild_parameter", "N\x85"), "expected other arguments"));
  EXPECT_TRUE(contains(call("torch._utils", "_rebuild_tensor_v2", "NK\1))\x89Nt"), "expected a mark"));
  EXPECT_TRUE(contains(call("torch._utils", "_rebuild_tensor_v2", "(NK\1))\x89Nt"), "other arguments"));
  EXPECT_TRUE(contains(call("torch", "Size", "N"), "expected a function and its arguments, found a function and None"));
  EXPECT_TRUE(contains(error([](Pickle& p) { p.integer(1).op(")R"); }), "found an integer and a tuple"));
  for (const char* id : {"NQ", ")Q", "(NNNNNtQ", "(X\7\0\0\0storagectorch\nSize\nX\0\0\0\0NK\1tQ"})
    EXPECT_NE(error([&](Pickle& p) { p.op(id); }), "") << id;
  EXPECT_TRUE(contains(error([](Pickle& p) { p.op("}Nb"); }), "expected the attributes of a dictionary"));
  EXPECT_TRUE(contains(error([](Pickle& p) { p.op("]}b"); }), "expected the attributes of a dictionary"));
}

TEST(Pickle, RejectsInvalidPrograms) {
  const std::pair<std::string, const char*> all[] = {{"", "expected one value at the end"},
                                                     {"NN", "expected one value at the end"},
                                                     {"(N", "expected one value at the end"},
                                                     {"t", "expected a mark on the stack"},
                                                     {"u", "expected a mark on the stack"},
                                                     {"\x85", "expected 1 values on the stack"},
                                                     {"N\x87", "expected 3 values on the stack"},
                                                     {"N(\x85", "expected 1 values on the stack"},
                                                     {"s", "expected 3 values on the stack"},
                                                     {"}(NNs", "expected 3 values on the stack"},
                                                     {"}(Nu", "expected a value for each key"},
                                                     {"NNNs", "expected a dictionary, found None"},
                                                     {"}(NNNa", "expected a list, found None"},
                                                     {"(NNNNNNu", "expected 7 values on the stack"},
                                                     {"q\1", "expected 1 values on the stack"},
                                                     {"h\1", "memo: expected a value at 1, found nothing"},
                                                     {"Nq\5h\1", "memo: expected a value at 1, found nothing"},
                                                     {"R", "expected 2 values on the stack"},
                                                     {"Q", "expected 1 values on the stack"},
                                                     {"b", "expected 2 values on the stack"},
                                                     {"NN\x93", "expected the name of a function"},
                                                     {"\x80\x01", "protocol: expected 2 to 5, found 1"},
                                                     {"\x80\x06", "protocol: expected 2 to 5, found 6"},
                                                     {"\xff", "opcode: expected an opcode of tensors or plain data"},
                                                     {"N.", "expected the end, found 1 more bytes"}};
  for (const auto& [ops, expected] : all) {
    const std::string error = error_of_pickle(Pickle().op(ops).end());
    EXPECT_TRUE(contains(error, "data.pkl: offset ") && contains(error, expected)) << ops << ": " << error;
  }
}

// One long tuple in the memo must not be copied into every tensor.
TEST(PyTorch, RejectsTensorsOfMoreDimensionsThanAnyModel) {
  for (const size_t dimensions : {8, 9, 1000}) {
    const TemporaryFolder folder;
    const std::vector<int64_t> shape(dimensions, 1);
    const std::string path = folder.write("x.pt", pytorch::save({{"x", shape, std::string(4, '\0')}}));
    std::string error;
    const auto file = InputFile::open(path, error);
    PyTorchFile reader(*file);
    FoundTensors found;
    EXPECT_EQ(reader.read(0, found), dimensions == 8) << reader.error;
    const std::string expected = "tensor x: shape: expected at most 8 dimensions, found " + std::to_string(dimensions);
    EXPECT_EQ(contains(reader.error, expected), dimensions > 8) << reader.error;
  }
}

TEST(Pickle, RejectsBombs) {
  const std::string four("\xff\xff\xff\xff", 4), most = "expected at most ";
  const auto many = [](const std::string& op, size_t n) {
    std::string all;
    for (size_t i = 0; i < n; i++) all += op;
    return all;
  };
  const size_t n = PickleReader::kMost + 1;
  const std::pair<std::string, std::string> all[] = {
      {"X" + four, "truncated: expected more of the pickle"},
      {std::string("X\0\0\0\x7f", 5), "truncated"},
      {"\x8c\xff", "truncated"},
      {"\x95" + four + four, "truncated"},
      {"Nr" + four, "places, found 4294967295"},
      {"j" + four, "memo: expected a value at 4294967295, found nothing"},
      {"\x8a\xff" + std::string(255, '\1'), "expected an integer of 64 bits, found 2040"},
      {many("(", n), most},
      {many("]", n), most},
      {many("}K\1", n), most},
      {many("\x85", 3), "expected 1 values on the stack"},
      {"N" + many("\x85", n), most},  // nested tuples
      {"Nq\1" + many("h\1", n), most}};
  for (const auto& [ops, expected] : all) {
    const std::string error = error_of_pickle(Pickle().op(ops).end());
    EXPECT_TRUE(contains(error, expected)) << ops.substr(0, 10) << ": " << error;
  }
  EXPECT_TRUE(contains(error_of_pickle(std::string(kLargestPickle + 1, 'N')), "data.pkl: expected at most 16777216"));
  // A list of ten times a list of ten times ...: 10^30 elements in total
  std::string laughs = "]q\1";
  for (char i = 1; i < 30; i++) laughs += std::string("](") + many(std::string("h") + i, 10) + "eq" + char(i + 1);
  EXPECT_TRUE(contains(error_of_pickle(Pickle().op("}").text("a").op(laughs).end()), "one value at the"));
  Pickle deep;
  deep.op("}").text("a").op("(" + laughs + "ts");
  EXPECT_EQ(error_of_pickle(deep.end()), "expected a dictionary of tensors (a state_dict), found a tuple under a");
  Pickle itself;
  itself.op("}q\1").text("model").op("h\1s");
  EXPECT_EQ(error_of_pickle(itself.end()),
            "expected a dictionary of tensors (a state_dict), found a dictionary under model");
}

// ---- Invalid archives ----

std::vector<Member> good_members() {
  Pickle p;
  pytorch::put_state_dict(p, {six()});
  return pytorch::members_of(p.end(), {raw(kSix)});
}
std::string with(const std::function<void(std::vector<Member>&)>& change, bool wide = false) {
  std::vector<Member> members = good_members();
  change(members);
  return error_of(pytorch::zip_of(members, wide));
}

TEST(ZipArchive, OpensEveryKindPyTorchWrites) {
  for (const bool wide : {false, true})
    for (const bool zip64 : {true, false})
      for (const uint16_t flags : {0x808, 0}) {
        if (wide && !zip64) continue;
        std::vector<Member> members = good_members();
        for (Member& m : members) m.flags = flags;
        Opened f(pytorch::zip_of(members, wide, zip64));
        ASSERT_EQ(f.error, "");
        EXPECT_EQ(f.read("w"), kSix);
      }
}

TEST(ZipArchive, RejectsWrongSizes) {
  for (const bool wide : {false, true}) {
    for (const uint64_t size : {uint64_t(0), uint64_t(23), uint64_t(25), uint64_t(1) << 31})
      EXPECT_NE(with([&](auto& m) { m[2].size = m[2].packed = size; }, wide), "") << size;
    EXPECT_EQ(with([](auto& m) { m[2].packed = 20; }, wide),
              "zip archive: member archive/data/0: size: expected 24 (stored), found 20");
    EXPECT_EQ(with([](auto& m) { m[2].flags = 0, m[2].local_size = 20; }, wide),
              "zip archive: member archive/data/0: size in its header: expected 24, found 20");
  }
  EXPECT_TRUE(contains(with([](auto& m) { m[2].size = m[2].packed = uint64_t(1) << 62; }, true),
                       "zip archive: member archive/data/0: size: expected at most "));
  // The next member's header and data are inside this member
  EXPECT_EQ(with([](auto& m) { m[2].size = m[2].packed = 64; }),
            "zip archive: member archive/version: expected no overlap with other members");
}

TEST(ZipArchive, RejectsOverlappingMembers) {
  for (const bool wide : {false, true}) {
    EXPECT_NE(with([](auto& m) { m[3].offset = 0; }, wide), "") << "another one's header";
    std::vector<Member> twice = good_members();
    twice.push_back(twice[2]);
    EXPECT_EQ(error_of(pytorch::zip_of(twice, wide)), "zip archive: member archive/data/0: expected once, found twice");
    for (const int64_t offset : {int64_t(1), int64_t(100000), INT64_MAX})
      EXPECT_NE(with([&](auto& m) { m[2].offset = offset; }, wide), "") << offset;
  }
  // One header with two names in the directory: only one agrees with the header
  EXPECT_EQ(with([](auto& m) { m[1].name = "archive/other"; }),
            "zip archive: member archive/other: expected a local header that agrees with the directory");
}

TEST(ZipArchive, RejectsPathsOutsideTheArchive) {
  for (const std::string& name :
       {std::string("../data/0"), std::string("archive/../../x"), std::string("/etc/passwd"), std::string("archive/.."),
        std::string(".."), std::string(""), std::string("archive\\..\\x"), std::string("archive/x\0y", 11)}) {
    const std::string error = with([&](auto& m) { m[3].name = m[3].local_name = name; });
    EXPECT_TRUE(contains(error, ": expected a name within the archive")) << error;
  }
  // The key of a storage is only looked up among the members
  Pickle p;
  p.op("}").text("w").tensor("FloatStorage", "../../../../etc/passwd", 6, 0, {6}, {1}).op("s");
  EXPECT_EQ(error_of_pickle(p.end(), {raw(kSix)}),
            "tensor w: data/../../../../etc/passwd: expected this member, found none");
}

TEST(ZipArchive, RejectsCompressedAndEncryptedMembers) {
  const std::string error = with([](auto& m) { m[0].method = 8; });
  EXPECT_EQ(error,
            "zip archive: member archive/data.pkl: expected a stored member, found a compressed one (method 8); "
            "PyTorch does not write these: load the file in Python and save it again with torch.save()");
  EXPECT_TRUE(contains(with([](auto& m) { m[2].flags |= 1; }), "data/0: expected no encryption"));
}

TEST(ZipArchive, DescribesOtherArchives) {
  EXPECT_EQ(error_of(pytorch::zip_of({{"a.txt", "x"}})),
            "expected a file of torch.save(), found a zip archive without data.pkl, which is not a model");
  EXPECT_EQ(error_of(pytorch::zip_of({})),
            "expected a file of torch.save(), found a zip archive without data.pkl, which is not a model");
  for (const auto& [member, kind] : {std::pair{"wte.npy", "a NumPy archive (.npz)"},
                                     {"model.weights.h5", "a Keras model"},
                                     {"llama/model.safetensors", "a zip archive of a model's files; unpack it"},
                                     {"config.json", "a zip archive of a model's files; unpack it"}})
    EXPECT_TRUE(contains(error_of(pytorch::zip_of({{"README.md", "x"}, {member, "x"}})),
                         std::string("expected a file of torch.save(), found ") + kind))
        << member;
  EXPECT_EQ(with([](auto& m) {
              m.push_back({"archive/constants.pkl", "x"});
            }),
            "a TorchScript archive; load it in Python and torch.save() its state_dict()");
  EXPECT_EQ(with([](auto& m) { m[1] = {"archive/byteorder", "big"}; }), "byteorder: expected little, found big");
}

TEST(ZipArchive, RejectsEveryTruncation) {
  const std::string whole = pytorch::zip_of(good_members());
  ASSERT_EQ(error_of(whole), "");
  for (size_t n = 0; n < whole.size(); n++) EXPECT_NE(error_of(whole.substr(0, n)), "") << n;
  for (size_t n = 0; n + 7 <= whole.size(); n += 7)  // and without 7 bytes in the middle, with the end intact
    EXPECT_NE(error_of(whole.substr(0, n) + whole.substr(n + 7)), "") << n;
  EXPECT_NE(error_of(whole + "x"), "");
}

TEST(ZipArchive, SurvivesAnyChangedByte) {
  const std::string whole = pytorch::zip_of(good_members(), true);
  tiny::Random random(3);
  int refused = 0;
  for (size_t at = 0; at < whole.size(); at++)
    for (const char value : {char(0), char(0xff), char(random.bits())}) {
      std::string bytes = whole;
      bytes[at] = value;
      Opened f(bytes);
      refused += !f.ok;
      for (const auto& [name, t] : f.tensors) EXPECT_TRUE(t.offset + t.bytes <= whole.size());
    }
  EXPECT_GT(refused, int(whole.size()) / 2);
}

// ---- Llamas ----

/// The tensor names of a format, by the engine's names.
using Names = std::map<std::string, std::string>;

const Names kHuggingFace = {{"token_embedding", "model.embed_tokens.weight"},
                            {"final_norm", "model.norm.weight"},
                            {"output", "lm_head.weight"},
                            {"layer", "model.layers."},
                            {"attention_norm", "input_layernorm.weight"},
                            {"wq", "self_attn.q_proj.weight"},
                            {"wk", "self_attn.k_proj.weight"},
                            {"wv", "self_attn.v_proj.weight"},
                            {"wo", "self_attn.o_proj.weight"},
                            {"ffn_norm", "post_attention_layernorm.weight"},
                            {"w1", "mlp.gate_proj.weight"},
                            {"w3", "mlp.up_proj.weight"},
                            {"w2", "mlp.down_proj.weight"}};

const Names kMeta = {{"token_embedding", "tok_embeddings.weight"},
                     {"final_norm", "norm.weight"},
                     {"output", "output.weight"},
                     {"layer", "layers."},
                     {"attention_norm", "attention_norm.weight"},
                     {"wq", "attention.wq.weight"},
                     {"wk", "attention.wk.weight"},
                     {"wv", "attention.wv.weight"},
                     {"wo", "attention.wo.weight"},
                     {"ffn_norm", "ffn_norm.weight"},
                     {"w1", "feed_forward.w1.weight"},
                     {"w3", "feed_forward.w3.weight"},
                     {"w2", "feed_forward.w2.weight"}};

Names lit_gpt(bool swiglu) {
  return {{"token_embedding", "transformer.wte.weight"},
          {"final_norm", "transformer.ln_f.weight"},
          {"output", "lm_head.weight"},
          {"layer", "transformer.h."},
          {"attention_norm", "norm_1.weight"},
          {"wo", "attn.proj.weight"},
          {"ffn_norm", "norm_2.weight"},
          {"w1", swiglu ? "mlp.swiglu.w1.weight" : "mlp.fc_1.weight"},
          {"w3", swiglu ? "mlp.swiglu.w2.weight" : "mlp.fc_2.weight"},
          {"w2", swiglu ? "mlp.swiglu.w3.weight" : "mlp.proj.weight"}};
}

Config llama_config() {
  Config c = tiny::small_config();
  c.n_heads = 8;
  c.n_kv_heads = 2;
  c.head_dim = 8;
  c.vocab_size = 50;
  c.max_seq_len = 64;
  return c;
}

Floats rows_of(const TensorSpec& spec) {
  Floats all(size_t(spec.rows) * size_t(spec.cols));
  std::string error;
  tiny::random_rows(spec, 0, spec.rows, all.data(), error);
  return all;
}

/// Rows of wq or wk in Meta's order: the two rows that rotate together are adjacent.
Floats interleaved(const Floats& rows, const TensorSpec& spec, int head) {
  Floats out(rows.size());
  for (int r = 0; r < spec.rows; r++) {
    const int i = r % head, place = r - i + 2 * (i % (head / 2)) + i / (head / 2);
    std::copy_n(&rows[size_t(r) * size_t(spec.cols)], spec.cols, &out[size_t(place) * size_t(spec.cols)]);
  }
  return out;
}

/// The model of tiny::random_rows() with these names. fused: the name of lit-gpt's fused tensor of wq, wk and wv.
std::vector<NamedTensor> llama(const Config& c, const Names& names, const std::string& fused = "") {
  std::vector<NamedTensor> all;
  std::map<std::string, Floats> qkv;
  for (const TensorSpec& spec : tensor_specs(c)) {
    const size_t dot = spec.name.rfind('.');
    const std::string part = dot == std::string::npos ? spec.name : spec.name.substr(dot + 1);
    const std::string layer = dot == std::string::npos ? "" : spec.name.substr(7, dot - 7);
    Floats rows = rows_of(spec);
    if (names.at("layer") == "layers." && (part == "wq" || part == "wk")) rows = interleaved(rows, spec, c.head_dim);
    if (!fused.empty() && (part == "wq" || part == "wk" || part == "wv")) {
      qkv[part] = rows;
      if (part != "wv") continue;
      Floats together;
      const auto take = [&](const char* from, int first, int count) {
        const auto begin = qkv[from].begin() + ptrdiff_t(first) * c.dim;
        together.insert(together.end(), begin, begin + ptrdiff_t(count) * c.dim);
      };
      const int per_group = c.n_heads / c.n_kv_heads * c.head_dim;
      for (int g = 0; g < c.n_kv_heads && fused == "attn.attn.weight"; g++)
        for (const char* part : {"wq", "wk", "wv"}) {
          const int rows = part[1] == 'q' ? per_group : c.head_dim;
          take(part, g * rows, rows);
        }
      if (fused != "attn.attn.weight") {
        take("wq", 0, c.q_dim());
        take("wk", 0, c.kv_dim());
        take("wv", 0, c.kv_dim());
      }
      all.push_back({names.at("layer") + layer + "." + fused, {c.q_dim() + 2 * c.kv_dim(), c.dim}, raw(together)});
      continue;
    }
    std::vector<int64_t> shape = {spec.rows, spec.cols};
    if (spec.layout == Layout::vector) shape = {spec.cols};
    all.push_back(
        {layer.empty() ? names.at(part) : names.at("layer") + layer + "." + names.at(part), shape, raw(rows)});
  }
  return all;
}

Json hugging_face_config(const Config& c) {
  return {{"model_type", "llama"},
          {"hidden_size", c.dim},
          {"intermediate_size", c.hidden_dim},
          {"num_hidden_layers", c.n_layers},
          {"num_attention_heads", c.n_heads},
          {"num_key_value_heads", c.n_kv_heads},
          {"vocab_size", c.vocab_size},
          {"rms_norm_eps", c.norm_eps},
          {"max_position_embeddings", c.max_seq_len}};
}

Json lit_config(const Config& c) {
  return {{"n_embd", c.dim},
          {"n_layer", c.n_layers},
          {"n_head", c.n_heads},
          {"n_query_groups", c.n_kv_heads},
          {"block_size", c.max_seq_len},
          {"norm_eps", c.norm_eps},
          {"rotary_percentage", 1.0},
          {"parallel_residual", false},
          {"bias", false},
          {"shared_attention_norm", false},
          {"_norm_class", "FusedRMSNorm"},
          {"_mlp_class", "LLaMAMLP"},
          {"condense_ratio", 1}};
}

std::vector<float> logits_of(const tiny::MemoryModel& m) {
  const std::vector<int> ids = tiny::random_ids(12, m.model.config.vocab_size);
  std::vector<float> all;
  Session session(m.model);
  EXPECT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t, const float* logits) {
    all.insert(all.end(), logits, logits + m.model.config.vocab_size);
    return true;
  })) << session.error;
  return all;
}

/// A folder with a model.
struct Folder {
  TemporaryFolder folder;
  Checkpoint c;
  std::string error;

  Folder& write(const std::string& name, const std::string& bytes) {
    std::filesystem::remove(folder.file(name));
    folder.write(name, bytes);
    return *this;
  }
  /// The error after the folder's name; "" if it opens.
  std::string what(const std::string& name = "") {
    error.clear();
    const bool ok = open_checkpoint(name.empty() ? folder.path() : folder.file(name), "", c, error);
    EXPECT_EQ(ok, error.empty()) << error;
    const size_t separator = error.rfind(folder.path() + "/", 0) == 0 ? 1 : 2;
    return error.substr(std::min(error.size(), folder.path().size() + separator));
  }
  /// Expects the logits of the model of tiny::random_rows().
  void expect_model(const Config& config, const std::string& name = "") {
    ASSERT_EQ(what(name), "");
    EXPECT_EQ(c.format, "PyTorch");
    const auto rows = [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
      return c.read_rows(spec.name, first, count, out, why);
    };
    const auto known = [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
      TensorSpec one = spec;
      if (config.tied && spec.name == "output") {
        one.name = "token_embedding";
        one.layout = Layout::rows;
      }
      return tiny::random_rows(one, first, count, out, why);
    };
    const std::vector<float> expected =
        logits_of(tiny::MemoryModel(tiny::model_bytes(tiny::parts_of(config, Type::f32), known)));
    const std::vector<float> found =
        logits_of(tiny::MemoryModel(tiny::model_bytes(tiny::parts_of(c.config, Type::f32), rows)));
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_TRUE(tiny::same_bits(found.data(), expected.data(), found.size()));
  }
};

TEST(PyTorchLlama, ReadsHuggingFaceNames) {
  const Config c = llama_config();
  Folder f;
  f.write("config.json", hugging_face_config(c).dump())
      .write("pytorch_model.bin", pytorch::save(llama(c, kHuggingFace)));
  f.expect_model(c);
  f.expect_model(c, "pytorch_model.bin");
  std::filesystem::rename(f.folder.file("pytorch_model.bin"), f.folder.file("weights.pth"));
  f.expect_model(c, "weights.pth");
}

TEST(PyTorchLlama, IgnoresSavedBuffersOfAnyType) {
  const Config c = llama_config();
  std::vector<NamedTensor> all = llama(c, kHuggingFace);
  const std::string eight(8 * 16, '\1');
  all.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {16}, eight, "DoubleStorage", 8});
  all.push_back({"model.layers.0.attention.mask", {1, 1, 4, 4}, eight.substr(0, 16), "BoolStorage", 1});
  all.push_back({"model.layers.1.attention.bias", {1, 1, 4, 4}, eight.substr(0, 16), "ByteStorage", 1});
  all.push_back({"freqs_cos", {8, 2}, eight, "LongStorage", 8});
  Folder f;
  f.write("config.json", hugging_face_config(c).dump()).write("pytorch_model.bin", pytorch::save(all));
  f.expect_model(c);
  all.push_back({"model.layers.1.attention.bias2", {1, 1, 4, 4}, eight.substr(0, 16), "ByteStorage", 1});
  f.write("pytorch_model.bin", pytorch::save(all));
  EXPECT_TRUE(contains(f.what(), "bias2: type: expected float32, float16 or bfloat16, found torch.ByteStorage"));
}

// An output matrix with the values of the embedding is the embedding, in the same storage or in another one.
TEST(PyTorchLlama, KeepsTrainedOutputMatrixOfTiedModel) {
  Config c = llama_config();
  std::vector<NamedTensor> all = llama(c, kHuggingFace);
  const auto output =
      std::find_if(all.begin(), all.end(), [](const NamedTensor& t) { return t.name == "lm_head.weight"; });
  Json config = hugging_face_config(c);
  config["tie_word_embeddings"] = true;
  Folder f;
  f.write("config.json", config.dump()).write("pytorch_model.bin", pytorch::save(all));
  f.expect_model(c);
  EXPECT_TRUE(f.c.notes.size() == 1 && contains(f.c.notes[0], "lm_head.weight differs from the embedding"));
  output->elements = all[0].elements;
  ASSERT_EQ(all[0].name, "model.embed_tokens.weight");
  f.write("pytorch_model.bin", pytorch::save(all));
  c.tied = true;
  f.expect_model(c);
  EXPECT_TRUE(f.c.config.tied && f.c.notes.empty());
}

TEST(PyTorchLlama, ReadsShards) {
  const Config c = llama_config();
  const std::vector<NamedTensor> all = llama(c, kHuggingFace);
  std::vector<NamedTensor> shards[2];
  Json map;
  for (size_t i = 0; i < all.size(); i++) {
    shards[i % 2].push_back(all[i]);
    map[all[i].name] = "pytorch_model-" + std::to_string(i % 2) + ".bin";
  }
  Folder f;
  f.write("config.json", hugging_face_config(c).dump());
  f.write("pytorch_model.bin.index.json", Json{{"weight_map", map}}.dump());
  for (int i = 0; i < 2; i++) f.write("pytorch_model-" + std::to_string(i) + ".bin", pytorch::save(shards[i]));
  f.expect_model(c);
  f.expect_model(c, "pytorch_model-1.bin");
  shards[1].push_back(all[0]);
  f.write("pytorch_model-1.bin", pytorch::save(shards[1]));
  EXPECT_EQ(f.what(), "pytorch_model-1.bin: tensor " + all[0].name + ": expected once, found also in " +
                          f.folder.file("pytorch_model-0.bin"));
}

TEST(PyTorchLlama, ReadsLitGptNames) {
  for (const bool swiglu : {true, false})
    for (const char* fused : {"attn.attn.weight", "attn.qkv.weight"})
      for (const int kv_heads : {2, 8, 1}) {
        Config c = llama_config();
        c.n_kv_heads = kv_heads;
        Folder f;
        f.write("lit_config.json", lit_config(c).dump());
        f.write("lit_model.pth", pytorch::save(llama(c, lit_gpt(swiglu), fused), [](Pickle& p, const auto& inner) {
                  p.op("}").text("model"), inner(), p.op("s");
                }));
        f.expect_model(c);
        f.expect_model(c, "lit_model.pth");
        f.write("config.json", hugging_face_config(c).dump());
        f.expect_model(c);
      }
}

TEST(PyTorchLlama, ChecksLitGptSettings) {
  const Config c = llama_config();
  Folder f;
  f.write("lit_model.pth", pytorch::save(llama(c, lit_gpt(true), "attn.attn.weight")));
  EXPECT_EQ(f.what("lit_model.pth"),
            "expected config.json, lit_config.json, model_config.yaml or params.json beside lit_model.pth, with the "
            "model's configuration, found none");
  const auto changed = [&](const char* key, const Json& value) {
    Json json = lit_config(c);
    json[key] = value;
    if (value.is_discarded()) json.erase(key);
    f.write("lit_config.json", json.dump());
    return f.what();
  };
  EXPECT_EQ(changed("condense_ratio", 4), "");
  EXPECT_EQ(f.c.config.rope_scaling, RopeScaling::linear);
  EXPECT_EQ(f.c.config.rope_factor, 4.f);
  EXPECT_EQ(changed("rope_base", 50000), "");
  EXPECT_EQ(f.c.config.rope_theta, 50000.f);
  EXPECT_EQ(f.c.config.max_seq_len, 64);
  EXPECT_FALSE(f.c.config.tied);
  const Json absent(Json::value_t::discarded);
  const std::pair<const char*, Json> refused[] = {{"parallel_residual", true},
                                                  {"parallel_residual", absent},
                                                  {"bias", true},
                                                  {"bias", absent},
                                                  {"shared_attention_norm", true},
                                                  {"rotary_percentage", 0.25},
                                                  {"rotary_percentage", absent},
                                                  {"_norm_class", "LayerNorm"},
                                                  {"_mlp_class", "GptNeoxMLP"},
                                                  {"_mlp_class", absent},
                                                  {"n_head", 7},
                                                  {"n_head", 0},
                                                  {"n_embd", absent},
                                                  {"block_size", 0}};
  for (const auto& [key, value] : refused) EXPECT_TRUE(contains(changed(key, value), key)) << f.error;
  EXPECT_TRUE(contains(changed("n_query_groups", 4),
                       "tensor transformer.h.0.attn.attn.weight: expected shape (128, "
                       "64), found (96, 64)"))
      << f.error;
}

/// lit_config() as lit-gpt writes it since September 2023, with all its settings.
Json later_lit_config(const Config& c) {
  Json json = lit_config(c);
  for (const char* old : {"condense_ratio", "_norm_class", "_mlp_class"}) json.erase(old);
  json.update({{"name", "a: Llama"},
               {"hf_config", {{"org", "meta-llama"}, {"name", "x"}}},
               {"head_size", c.head_dim},
               {"norm_class_name", "RMSNorm"},
               {"norm_qk", false},
               {"norm_1", true},
               {"norm_2", true},
               {"mlp_class_name", "LLaMAMLP"},
               {"gelu_approximate", "none"},
               {"n_expert", 0},
               {"lm_head_bias", false},
               {"scale_embeddings", false},
               {"rope_condense_ratio", 1},
               {"rope_adjustments", nullptr},
               {"rope_base", 500000},
               {"attention_scores_scalar", nullptr},
               {"sliding_window_size", nullptr},
               {"final_logit_softcapping", nullptr},
               {"latent_attention", nullptr}});
  return json;
}

// Settings under their names since September 2023; settings of other models are refused, known or not.
TEST(PyTorchLlama, ReadsLaterLitGptSettings) {
  const Config c = llama_config();
  Folder f;
  f.write("lit_model.pth", pytorch::save(llama(c, lit_gpt(false), "attn.qkv.weight")));
  const auto with = [&](const char* key, const Json& value) {
    Json json = later_lit_config(c);
    json[key] = value;
    f.write("lit_config.json", json.dump());
    return f.what();
  };
  EXPECT_EQ(with("rope_condense_ratio", 4), "");
  EXPECT_TRUE(f.c.config.rope_scaling == RopeScaling::linear && f.c.config.rope_factor == 4.f);
  const Json llama3 = {
      {"factor", 32.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_seq_len", 8192}};
  EXPECT_EQ(with("rope_adjustments", llama3), "");
  const Config& k = f.c.config;
  EXPECT_TRUE(k.rope_scaling == RopeScaling::llama3 && k.rope_factor == 32 && k.rope_low_freq == 1 &&
              k.rope_high_freq == 4 && k.rope_original_len == 8192 && k.rope_theta == 500000);
  EXPECT_EQ(with("rope_adjustments", {{"factor", 8.0}}), "");
  EXPECT_TRUE(k.rope_scaling == RopeScaling::linear && k.rope_factor == 8);
  EXPECT_EQ(with("sliding_window_size", c.max_seq_len) + with("attention_scores_scalar", c.head_dim), "");
  const std::pair<const char*, Json> refused[] = {{"scale_embeddings", true},
                                                  {"lm_head_bias", true},
                                                  {"norm_qk", true},
                                                  {"norm_1", false},
                                                  {"post_mlp_norm", true},
                                                  {"n_expert", 8},
                                                  {"attention_scores_scalar", 256},
                                                  {"final_logit_softcapping", 30.0},
                                                  {"sliding_window_size", 16},
                                                  {"head_size", 16},
                                                  {"norm_class_name", "LayerNorm"},
                                                  {"mlp_class_name", "GemmaMLP"},
                                                  {"setting_of_next_year", "a text"},
                                                  {"rope_adjustments", {{"factor", 8.0}, {"low_freq_factor", 1.0}}},
                                                  {"rope_adjustments", {{"factor", 8.0}, {"beta_fast", 1.0}}}};
  for (const auto& [key, value] : refused) {
    const std::string error = with(key, value);
    EXPECT_TRUE(contains(error, key == std::string("head_size")          ? "attn.qkv.weight: expected shape"
                                : key == std::string("rope_adjustments") ? "_freq_factor"
                                                                         : key))
        << key << error;
  }
}

// model_config.yaml as PyYAML 6.0.4 writes such a configuration.
TEST(PyTorchLlama, ReadsYamlOfLitGpt) {
  const Config c = llama_config();
  const Json settings = later_lit_config(c);
  std::string yaml;
  for (const auto& [key, value] : settings.items())
    if (value.is_object())
      yaml += key + ":\n  name: x\n  org: meta-llama\n";
    else if (key == "norm_eps")
      yaml += key + ": 1.0e-05\n";
    else
      yaml += key + ": " +
              (key == "name"       ? "'a: Llama'"
               : value.is_string() ? value.get<std::string>()
                                   : value.dump()) +
              "\n";
  Folder f;
  f.write("lit_model.pth", pytorch::save(llama(c, lit_gpt(false), "attn.qkv.weight")));
  f.write("model_config.yaml", yaml + "sliding_window_indices:\n- 1\n- 0\n");
  EXPECT_EQ(f.what(), "");
  EXPECT_TRUE(f.c.config.norm_eps == 1e-5f && f.c.config.rope_theta == 500000 && f.c.config.dim == c.dim);
  f.write("model_config.yaml", yaml + "rope_indices:\n- 1\n- 0\n");
  const std::string line = std::to_string(1 + std::count(yaml.begin(), yaml.end(), '\n'));
  EXPECT_TRUE(contains(f.what(), "model_config.yaml:" + line + ":") &&
              contains(f.error, "\"rope_indices\": expected null, false or 0: this setting is not supported"))
      << f.error;
  for (const char* bad : {"  - - 1\n", "no colon\n", "\t\n", "- 1\n", "x:\n  y:\n    z: 1\n  - 1\n"}) {
    f.write("model_config.yaml", yaml + bad);
    EXPECT_TRUE(contains(f.what(), "model_config.yaml:" + line + ":") || contains(f.error, "model_config.yaml:"))
        << bad << f.error;
  }
}

TEST(PyTorchLlama, ReadsMetaNames) {
  Config c = llama_config();
  c.max_seq_len = 4096;
  Folder f;
  f.write("params.json", Json{{"dim", c.dim},
                              {"multiple_of", 32},
                              {"n_heads", c.n_heads},
                              {"n_kv_heads", c.n_kv_heads},
                              {"n_layers", c.n_layers},
                              {"norm_eps", 1e-5},
                              {"vocab_size", -1}}
                             .dump());
  std::vector<NamedTensor> all = llama(c, kMeta);
  all.push_back({"rope.freqs", {4}, raw({1, 1, 1, 1})});
  f.write("consolidated.00.pth", pytorch::save(all));
  f.expect_model(c);
  EXPECT_EQ(f.c.config.max_seq_len, 4096);
  EXPECT_EQ(f.c.config.vocab_size, c.vocab_size);
  f.write("consolidated.01.pth", "");
  EXPECT_TRUE(contains(f.what(), "found also consolidated.01.pth")) << f.error;
  f.write("params.json", Json{{"dim", 64}, {"n_heads", 8}, {"n_layers", 2}, {"use_scaled_rope", true}}.dump());
  std::filesystem::remove(f.folder.file("consolidated.01.pth"));
  EXPECT_TRUE(contains(f.what(), "params.json") && contains(f.error, "\"use_scaled_rope\": expected false")) << f.error;
}

TEST(PyTorchLlama, ReadsLlama2cTrainingCheckpoint) {
  Config c = llama_config();
  c.tied = true;
  std::vector<NamedTensor> all = llama(c, kMeta);
  const NamedTensor embedding = all[0];
  all.pop_back();  // the output, which shares the storage of the embedding
  Pickle p;
  p.op("}(").text("model").op("}(");
  for (size_t i = 0; i < all.size(); i++) {
    const auto& [name, shape, elements, type, bytes] = all[i];
    p.text("_orig_mod." + name)
        .tensor(type, std::to_string(i), int64_t(elements.size() / 4), 0, shape, pytorch::strides_of(shape));
  }
  p.text("_orig_mod.output.weight").tensor("FloatStorage", "0", c.vocab_size * c.dim, 0, embedding.shape, {c.dim, 1});
  p.op("u").text("model_args").op("}(");
  for (const auto& [key, value] : {std::pair{"dim", c.dim},
                                   {"n_layers", c.n_layers},
                                   {"n_heads", c.n_heads},
                                   {"n_kv_heads", c.n_kv_heads},
                                   {"vocab_size", c.vocab_size},
                                   {"multiple_of", 32},
                                   {"max_seq_len", c.max_seq_len}})
    p.text(key).integer(value);
  p.text("dropout").real(0.125).op("u").text("iter_num").integer(1000).op("u");
  std::vector<std::string> storages;
  for (const NamedTensor& t : all) storages.push_back(t.elements);
  Folder f;
  f.write("ckpt.pt", pytorch::zip_of(pytorch::members_of(p.end(), storages)));
  f.expect_model(c, "ckpt.pt");
  EXPECT_TRUE(f.c.config.tied);
  EXPECT_EQ(f.c.config.max_seq_len, 64);
  EXPECT_EQ(f.c.stop_ids, std::vector<int>{1});
}

TEST(PyTorchLlama, ReportsMissingAndExtraTensors) {
  const Config c = llama_config();
  Folder f;
  f.write("lit_config.json", lit_config(c).dump());
  const std::vector<NamedTensor> all = llama(c, lit_gpt(true), "attn.attn.weight");
  for (size_t i = 0; i < all.size(); i++) {
    std::vector<NamedTensor> less = all;
    less.erase(less.begin() + ptrdiff_t(i));
    f.write("lit_model.pth", pytorch::save(less));
    const std::string error = f.what();
    if (all[i].name == "lm_head.weight") continue;  // without it the model is tied
    EXPECT_TRUE(contains(error, "found no such tensor")) << all[i].name << ": " << error;
  }
  std::vector<NamedTensor> more = all;
  more.push_back({"transformer.h.0.attn.attn.bias", {96}, raw(Floats(96))});
  f.write("lit_model.pth", pytorch::save(more));
  EXPECT_EQ(f.what(),
            "lit_model.pth: tensor transformer.h.0.attn.attn.bias: expected the tensors of a Llama, found "
            "another tensor, (96); this is another architecture");
}

}  // namespace pytorch_test
