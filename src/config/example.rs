//! A file with every key, its default and what it is for, made from the table of options.

use super::key::{KEYS, Key};
use super::layer::Layer;
use super::show::value;

const RULES: &str = "
# Which paths face the outside, first match wins; all of them without a rule.
# [[external.paths]]
# allow = \"/hooks/\"
# methods = [\"POST\"]
# [[external.paths]]
# deny = \"/\"
";

/// The text of the file. It says what loopgate does without one.
pub fn example() -> String {
    let defaults = Layer::defaults();
    let mut out = String::from("# Every key of loopgate's configuration file, with its default.\n");
    let mut table = "";
    for key in KEYS.iter() {
        if key.table() != table {
            // Rules need no flag, and so are not in the table of options.
            if table == "external" {
                out.push_str(RULES);
            }
            table = key.table();
            out.push_str(&format!("\n[{table}]\n"));
        }
        out.push_str(&entry(key, &defaults));
    }
    out
}

fn entry(key: &Key, defaults: &Layer) -> String {
    let given = defaults.get(key);
    // A comment where there is neither a default nor an empty value.
    let mark = if given.is_empty() && !key.is_list() { "# " } else { "" };
    format!("# {}.\n{mark}{} = {}\n", key.help, key.name(), value(key, given))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::check::check;
    use super::super::file::parse;
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_example_equals_the_defaults_and_has_every_key() {
        let layer = parse(&example(), Path::new("example.toml"));
        assert_eq!(check(&layer.over(Layer::defaults())).unwrap(), Config::default());
        let uncommented = example().replace("# [[", "[[").lines().map(uncomment).collect::<Vec<_>>().join("\n");
        let layer = parse(&uncommented, Path::new("example.toml"));
        assert_eq!(layer.complaints, []);
        for key in KEYS.iter() {
            assert!(key.is_list() || !layer.get(key).is_empty(), "{}", key.path);
        }
        assert_eq!(layer.paths.unwrap().len(), 2);
    }

    fn uncomment(line: &str) -> &str {
        line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line)
    }

    #[test]
    fn the_example_in_the_repository_is_this_one() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/loopgate.toml");
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(text, example(), "make it anew: loopgate config example > docker/loopgate.toml");
    }
}
