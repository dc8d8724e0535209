//! Generates the example file from the table of options: every key with its default and help.

use super::key::KEYS;
use super::layer::Layer;
use super::option::Key;
use super::show::toml_value;

/// The example of path rules, which are not in the table of options.
const PATH_RULES: &str = "
# Rules for the paths of external requests, first match wins; all are open without a rule.
# [[external.paths]]
# allow = \"/hooks/\"
# methods = [\"POST\"]
# upgrade = false
# port = 18789
# [[external.paths]]
# deny = \"/\"
";

/// Returns the text of the example file. Its values are the defaults.
pub fn example() -> String {
    let defaults = Layer::defaults();
    let mut out = String::from("# Every key of loopgate's configuration file, with its default.\n");
    let mut table = "";
    for key in KEYS.iter() {
        if key.table() != table {
            // The rules follow the other keys of their table.
            if table == "external" {
                out.push_str(PATH_RULES);
            }
            table = key.table();
            out.push_str(&format!("\n[{table}]\n"));
        }
        out.push_str(&option_entry(key, &defaults));
    }
    out
}

fn option_entry(key: &Key, defaults: &Layer) -> String {
    let values = defaults.get(key);
    // A key with neither a default nor an empty value is commented out.
    let comment_mark = if values.is_empty() && !key.is_list() { "# " } else { "" };
    format!("# {}.\n{comment_mark}{} = {}\n", key.help, key.name(), toml_value(key, values))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::parse;
    use super::super::validate::to_config;
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_example_equals_the_defaults_and_has_every_key() {
        let layer = parse(&example(), Path::new("example.toml"));
        assert_eq!(to_config(&layer.merged_over(Layer::defaults())).unwrap(), Config::default());
        let uncommented = example().replace("# [[", "[[").lines().map(uncomment).collect::<Vec<_>>().join("\n");
        let layer = parse(&uncommented, Path::new("example.toml"));
        assert_eq!(layer.problems, []);
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
        assert_eq!(text, example(), "regenerate the file: loopgate config example > docker/loopgate.toml");
    }
}
