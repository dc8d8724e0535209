//! The rules of the architecture of `src`: a module imports only from lower layers, and neither
//! modules nor files of a module import each other in a cycle. The layers are read from the table
//! in docs/architecture.md. Also what that document, others and the tests cite from `src`.
//!
//! Imports are paths in the text of the sources: `crate::...`, `super::...`, and `child::...` in
//! the file that declares `mod child;`. Comments and test code are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source file: the path of its module, and its code without comments and tests.
struct Source {
    module: Vec<String>,
    code: String,
}

type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn a_module_imports_only_from_lower_layers() {
    let layers = layers();
    let modules = modules(&sources());
    for module in modules.keys() {
        assert!(layers.contains_key(module), "{module} is missing in the table of layers in docs/architecture.md");
    }
    for module in layers.keys() {
        assert!(modules.contains_key(module), "docs/architecture.md names a module {module}, which does not exist");
    }
    let upward = modules.iter().flat_map(|(module, imports)| imports.iter().map(move |import| (module, import)));
    let upward: Vec<String> = upward
        .filter(|(module, import)| layers[*import] <= layers[*module])
        .map(|(module, import)| {
            format!("{module} (layer {}) imports {import} (layer {})", layers[module], layers[import])
        })
        .collect();
    assert!(upward.is_empty(), "layers are numbered from the top, and imports must go down:\n{}", upward.join("\n"));
}

#[test]
fn no_files_of_a_module_import_each_other_in_a_cycle() {
    let cycles = cycles(&files(&sources()));
    assert!(cycles.is_empty(), "files that import each other in a cycle:\n{}", cycles.join("\n"));
}

#[test]
fn items_in_the_table_of_decisions_exist() {
    let mut item_count = 0;
    for row in table("| question | where |") {
        let mut file = String::new();
        for name in row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                let path = root().join("src").join(name);
                file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            } else if !file.is_empty() {
                assert!(defines(&strip(&file), name), "{name} is not in the file before it:\n{row}");
                item_count += 1;
            }
        }
        assert!(!file.is_empty(), "no file is named:\n{row}");
    }
    assert!(item_count >= 30, "only {item_count} items are named");
    assert!(!defines("fn finder() { find(); }", "find") && defines("    pub(super) async fn find<T>() {}", "find"));
}

#[test]
fn items_that_documents_name_exist() {
    let mut item_count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let document = document.strip_prefix(root()).unwrap().display();
        for (file, item) in named_items(&text) {
            let path = if root().join(&file).exists() { root().join(&file) } else { root().join("src").join(&file) };
            let code = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{document}: {file}: {error}"));
            assert!(defines(&strip(&code), &item), "{document}: {item} is not in {file}");
            item_count += 1;
        }
    }
    assert!(item_count >= 80, "only {item_count} items are named");
    let text = "`a.rs`: `b`, `C`; `c`\n```text\n`d.rs`: `e`\n```\n`f` in `g.rs`. `h.rs` and `i`: `j`";
    assert_eq!(named_items(text), [("a.rs", "b"), ("a.rs", "C"), ("g.rs", "f")].map(|(a, b)| (a.into(), b.into())));
}

/// Values of fields and paths are left out: they have a `=`, `:` or `/`, and no space.
#[test]
fn texts_that_tests_wait_for_in_the_log_are_in_the_source() {
    // Of Podman, for a rootless container without a control group; of OpenClaw 2026.2.19.
    const TEXTS_OF_OTHER_PROGRAMS: [&str; 2] = ["it did not create a cgroup", "makes no sense with bind=loopback"];
    let read_rust_files = |directory: &str| {
        let mut files = Vec::new();
        collect_files(&root().join(directory), &mut files);
        files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
        files.into_iter().map(|file| (std::fs::read_to_string(&file).unwrap(), file)).collect::<Vec<_>>()
    };
    let source: String = read_rust_files("src").iter().map(|(text, _)| join_literals(text)).collect();
    let (mut text_count, mut missing) = (0, Vec::new());
    for (code, file) in read_rust_files("tests") {
        for text in awaited_texts(&join_literals(&code)) {
            text_count += 1;
            let is_value = text.contains(['=', ':', '/']) && !text.contains(' ');
            if !is_value && !TEXTS_OF_OTHER_PROGRAMS.contains(&&*text) && !source.contains(&text) {
                missing.push(format!("{}: {text}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(text_count >= 40, "only {text_count} texts are awaited");
    assert!(missing.is_empty(), "tests wait for texts that no source has:\n{}", missing.join("\n"));
    let code =
        join_literals("a.wait_for_log(\"b \\\n  c\"); a\n.wait_for_log_blocking(\n\"d\\\"e\",); wait_for_log(f)");
    assert_eq!(awaited_texts(&code), ["b c", "d\\\"e"]);
}

/// Rows that say "no code" have no marker.
#[test]
fn files_with_a_workaround_are_those_in_the_table() {
    let mut listed = BTreeSet::new();
    for row in table("| where | what | upstream |") {
        let place = row.split('|').nth(1).unwrap();
        let file = |name: &str| if name.ends_with(".rs") { format!("src/{name}") } else { name.to_owned() };
        let names = place.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") || name.ends_with(".toml"));
        let files: Vec<String> = names.map(file).collect();
        assert!(!files.is_empty(), "no file is named:\n{row}");
        if !row.contains("(no code)") {
            listed.extend(files);
        }
    }
    let mut paths = Vec::new();
    collect_files(&root().join("src"), &mut paths);
    paths.extend(["Cargo.toml", ".cargo/config.toml"].map(|name| root().join(name)));
    let has_marker = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains("Workaround");
    let marked: BTreeSet<String> = paths
        .iter()
        .filter(|path| has_marker(path))
        .map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned())
        .collect();
    let unlisted: Vec<_> = marked.difference(&listed).collect();
    assert!(unlisted.is_empty(), "files with \"Workaround\" that docs/architecture.md does not list: {unlisted:?}");
    let unmarked: Vec<_> = listed.difference(&marked).collect();
    assert!(unmarked.is_empty(), "files in the table without \"Workaround\": {unmarked:?}");
}

#[test]
fn paths_are_found_in_code_only() {
    let code = strip(
        "use crate::a::B; // crate::comment\n/// crate::doc\nfn f() { super::c(); }\n#[cfg(test)]\n\
         use crate::test_only;\n#[cfg(test)]\nmod tests {\n    use crate::tests_only;\n}\n\
         use crate::{\n    d::E,\n    f,\n};\n",
    );
    let found = paths(&code, &[]);
    let expected = [["crate", "a", "B"].as_slice(), &["super", "c"], &["crate", "d", "E"], &["crate", "f"]];
    assert_eq!(found, expected.map(|path| path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>()));
}

#[test]
fn cycles_are_found_whatever_their_length() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(cycles(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), [] as [String; 0]);
    assert_eq!(cycles(&graph(&[("a", "b"), ("b", "a")])), ["a -> b -> a"]);
    assert_eq!(cycles(&graph(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")])), ["a -> b -> c -> a"]);
}

/// The layer of each module, numbered from the top.
fn layers() -> BTreeMap<String, usize> {
    let mut layers = BTreeMap::new();
    for (layer, row) in table("| modules |").iter().enumerate() {
        let names = row.split('|').nth(1).unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            assert!(layers.insert(name.to_owned(), layer + 1).is_none(), "{name} is twice in the table of layers");
        }
    }
    layers
}

/// The rows of the first table in docs/architecture.md whose heading begins with `heading`.
fn table(heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows: Vec<String> = table.take_while(|line| line.starts_with('|')).map(str::to_owned).collect();
    assert!(!rows.is_empty(), "docs/architecture.md has no table with the heading `{heading}`");
    rows
}

/// The files for readers that name items of the code.
fn documents() -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect_files(&root().join("docs"), &mut files);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.push(root().join("CONTRIBUTING.md"));
    files
}

/// Returns the items that `text` names, each with its file: after the file and a colon, with commas
/// between them, or before the file and `in`. Blocks of code are left out.
fn named_items(text: &str) -> Vec<(String, String)> {
    let is_item = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let mut found = Vec::new();
    for line in text.split("```").step_by(2).flat_map(str::lines) {
        // Parts with an odd index are code, the others are the text around it.
        let parts: Vec<&str> = line.split('`').collect();
        for at in (1..parts.len()).step_by(2).filter(|at| parts[*at].ends_with(".rs")) {
            let file = parts[at].to_owned();
            if at >= 3 && parts[at - 1] == " in " && is_item(parts[at - 2]) {
                found.push((file.clone(), parts[at - 2].to_owned()));
            }
            let mut item = at + 2;
            while let Some(name) = parts.get(item).filter(|name| is_item(name))
                && parts[item - 1] == if item == at + 2 { ": " } else { ", " }
            {
                found.push((file.clone(), (*name).to_owned()));
                item += 2;
            }
        }
    }
    found
}

/// Returns whether `code` defines an item called `name`.
fn defines(code: &str, name: &str) -> bool {
    let words = ["fn", "struct", "enum", "trait", "type", "const", "static"];
    words.into_iter().any(|word| {
        let definition = format!("{word} {name}");
        code.match_indices(&definition).any(|(at, _)| {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            !code[..at].ends_with(is_name) && !code[at + definition.len()..].starts_with(is_name)
        })
    })
}

/// Returns `code` with each string literal on one line.
fn join_literals(code: &str) -> String {
    let mut parts = code.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start())
}

/// Returns the string literals in `code` that are given to a function that waits for a line of a
/// log, as they are written.
fn awaited_texts(code: &str) -> Vec<String> {
    let calls = ["wait_for_log", "wait_for_log_blocking"];
    let literal = |rest: &str| {
        let rest = rest.strip_prefix('(')?.trim_start().strip_prefix('"')?;
        let end = rest.match_indices('"').map(|(at, _)| at).find(|at| !rest[..*at].ends_with('\\'))?;
        Some(rest[..end].to_owned())
    };
    let after =
        |call| code.match_indices(call).filter_map(move |(at, call): (usize, &str)| literal(&code[at + call.len()..]));
    calls.into_iter().flat_map(after).collect()
}

/// Adds the files below `directory` to `files`.
fn collect_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect_files(&path, files) } else { files.push(path) }
    }
}

/// The modules of the crate, each with the modules that it imports.
fn modules(sources: &[Source]) -> Graph {
    let mut graph = Graph::new();
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let module = &source.module[0];
        let imports = graph.entry(module.clone()).or_default();
        for path in targets(source) {
            if let Some(target) = path.first().filter(|target| *target != module) {
                imports.insert(target.clone());
            }
        }
    }
    let known: BTreeSet<String> = graph.keys().cloned().collect();
    graph.values_mut().for_each(|imports| imports.retain(|import| known.contains(import)));
    graph
}

/// The files of the crate, each with the files of its module that it imports.
fn files(sources: &[Source]) -> Graph {
    let known: BTreeSet<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
    let mut graph = Graph::new();
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let imports = graph.entry(source.module.join("::")).or_default();
        for path in targets(source) {
            // The longest prefix of the path that is a file.
            let file = (1..=path.len()).rev().map(|length| &path[..length]).find(|path| known.contains(path));
            if let Some(file) = file.filter(|file| file[0] == source.module[0] && *file != source.module) {
                imports.insert(file.join("::"));
            }
        }
    }
    graph
}

/// The paths in `source`, relative to the root of the crate.
fn targets(source: &Source) -> Vec<Vec<String>> {
    let children = children(&source.code);
    let resolve = |path: Vec<String>| -> Option<Vec<String>> {
        let mut at = match path[0].as_str() {
            "crate" => Vec::new(),
            "super" => source.module.clone(),
            _ => [source.module.clone(), vec![path[0].clone()]].concat(),
        };
        for part in &path {
            match part.as_str() {
                "super" => drop(at.pop()?),
                "crate" => {}
                _ if part == &path[0] => {}
                _ => at.push(part.clone()),
            }
        }
        Some(at)
    };
    paths(&source.code, &children).into_iter().filter_map(resolve).collect()
}

/// The names in declarations `mod name;`.
fn children(code: &str) -> Vec<String> {
    let declaration = |line: &str| {
        let (before, name) = line.trim().strip_suffix(';')?.rsplit_once("mod ")?;
        (before.is_empty() || before.starts_with("pub")).then(|| name.to_owned())
    };
    code.lines().filter_map(declaration).collect()
}

/// Every path in `code` that begins with `crate`, `super` or one of `children`. A group in braces
/// is several paths.
fn paths(code: &str, children: &[String]) -> Vec<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut remaining = code;
    let mut before = ' ';
    while let Some(c) = remaining.chars().next() {
        let name: String = remaining.chars().take_while(|c| is_name(*c)).collect();
        if name.is_empty() {
            before = c;
            remaining = &remaining[c.len_utf8()..];
            continue;
        }
        let after = &remaining[name.len()..];
        // `pub(in crate::...)` is a visibility, not an import.
        let is_visibility = code[..code.len() - remaining.len()].ends_with("pub(in ");
        let begins =
            before != ':' && !is_visibility && (name == "crate" || name == "super" || children.contains(&name));
        if begins && let Some(tail) = after.strip_prefix("::") {
            expand(std::slice::from_ref(&name), tail, &mut found);
        }
        before = 'x';
        remaining = after;
    }
    found
}

/// Adds to `found` the paths that begin with `head` and continue with `tail`, which may be a group
/// in braces.
fn expand(head: &[String], tail: &str, found: &mut Vec<Vec<String>>) {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    if let Some(group) = tail.strip_prefix('{') {
        let mut depth = 1;
        let end = group.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let group = &group[..end.map_or(group.len(), |(at, _)| at)];
        let mut depth = 0;
        let members = group.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        members.map(str::trim).filter(|member| !member.is_empty()).for_each(|member| expand(head, member, found));
        return;
    }
    let name: String = tail.chars().take_while(|c| is_name(*c)).collect();
    if name.is_empty() || name == "self" {
        found.push(head.to_vec());
        return;
    }
    let path = [head, std::slice::from_ref(&name)].concat();
    match tail[name.len()..].strip_prefix("::") {
        Some(tail) if !tail.starts_with('<') => expand(&path, tail, found),
        _ => found.push(path),
    }
}

/// Returns `text` without comments and without test-only items.
fn strip(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.split("//").next().unwrap();
        if !line.trim().starts_with("#[cfg(") || !line.contains("test") || line.contains("not(test") {
            code.push_str(line);
            code.push('\n');
            continue;
        }
        // The item ends with a semicolon, or with a brace at its own indentation.
        let indentation = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indentation));
        for line in lines.by_ref() {
            if line == end || (line.ends_with([';', ',']) && line.len() - line.trim_start().len() == indentation) {
                break;
            }
        }
    }
    code
}

fn sources() -> Vec<Source> {
    let source = root().join("src");
    let mut files = Vec::new();
    collect_files(&source, &mut files);
    let texts: Vec<(PathBuf, String)> = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| (file.strip_prefix(&source).unwrap().with_extension(""), std::fs::read_to_string(&file).unwrap()))
        .collect();
    let test_only: BTreeSet<Vec<String>> =
        texts.iter().flat_map(|(path, text)| test_modules(&module(path), text)).collect();
    let is_test = |module: &[String]| (1..=module.len()).any(|length| test_only.contains(&module[..length]));
    texts
        .iter()
        .map(|(path, text)| Source { module: module(path), code: strip(text) })
        // The crate's root and its binary may import every module.
        .filter(|source| !is_test(&source.module) && !matches!(source.module.join("::").as_str(), "" | "main"))
        .collect()
}

/// The modules that `text`, the file of `module`, declares as `#[cfg(test)] mod name;`.
fn test_modules(module: &[String], text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("#[cfg(") && line.contains("test") && !line.contains("not(test") {
            let item = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
            if let Some(name) = item.and_then(|item| item.strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name))
            {
                found.push([module, &[name.to_owned()][..]].concat());
            }
        }
    }
    found
}

fn module(path: &Path) -> Vec<String> {
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "mod" && part != "lib").collect()
}

/// The cycles of `graph`: one for each set of nodes that reach each other.
fn cycles(graph: &Graph) -> Vec<String> {
    let mut cycles = Vec::new();
    let mut in_cycles = BTreeSet::new();
    for start in graph.keys() {
        if in_cycles.contains(start) {
            continue;
        }
        if let Some(path) = shortest_cycle(graph, start) {
            in_cycles.extend(path.iter().cloned());
            cycles.push([path, vec![start.clone()]].concat().join(" -> "));
        }
    }
    cycles
}

/// The shortest path from `start` to itself, without the last node.
fn shortest_cycle(graph: &Graph, start: &str) -> Option<Vec<String>> {
    let mut paths_to_extend = std::collections::VecDeque::from([vec![start.to_owned()]]);
    let mut visited = BTreeSet::new();
    while let Some(path) = paths_to_extend.pop_front() {
        for next in graph.get(path.last()?).into_iter().flatten() {
            if next == start {
                return Some(path);
            }
            if visited.insert(next.clone()) {
                paths_to_extend.push_back([path.clone(), vec![next.clone()]].concat());
            }
        }
    }
    None
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
