//! What `systemctl show` prints of units.

/// The properties of one unit, in systemd's order; some come several times.
#[derive(Clone, Debug, Default)]
pub struct ShownUnit(Vec<(String, String)>);

impl ShownUnit {
    /// The units that `systemctl show` printed.
    pub fn read_all(text: &str) -> Vec<Self> {
        text.trim_end_matches('\n').split("\n\n").map(Self::read).collect()
    }

    fn read(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Self(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    /// A property's only or last value, when it is not empty.
    pub fn last(&self, key: &str) -> Option<String> {
        self.all(key).last().filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// All values of a property.
    pub fn all(&self, key: &str) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// What a socket unit listens on, as the kernel has it: address, and whether for streams or datagrams.
    pub fn listens(&self) -> Vec<(String, String)> {
        let listen = |value: &str| {
            let (address, kind) = value.strip_suffix(')')?.rsplit_once(" (")?;
            Some((address.to_owned(), kind.to_owned()))
        };
        self.all("Listen").filter_map(listen).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_systemd_shows_them() {
        let text =
            "Id=x.socket\nListen=127.0.0.1:1234 (Stream)\nListen=/run/a b (c).sock (Stream)\nListen=\nEmpty=\n\nId=y\n";
        let units = ShownUnit::read_all(text);
        let [shown, _] = &units[..] else { panic!("two units") };
        let listens = shown.listens();
        assert_eq!(listens[0], ("127.0.0.1:1234".into(), "Stream".into()));
        assert_eq!(listens[1], ("/run/a b (c).sock".into(), "Stream".into()));
        assert_eq!(listens.len(), 2);
        assert_eq!(
            (shown.last("Id").as_deref(), shown.last("Empty"), shown.last("None")),
            (Some("x.socket"), None, None)
        );
    }
}
