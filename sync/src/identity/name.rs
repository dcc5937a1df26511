//! Names of nodes, parsed once.

use std::fmt;

/// Longest node name, in bytes (RFC 1123 as Kubernetes reads it).
const NAME_BYTES_MAX: usize = 253;

/// The name of a Node: an RFC 1123 subdomain of at most 253 bytes. It is safe in a topic, a path and a certificate subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Why a text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node name {shown:?} is not valid: it must be at most 253 characters of lower case letters, digits, '-' and '.', each part \
     between dots beginning and ending with a letter or digit"
)]
pub struct NodeNameError {
    shown: String,
}

impl NodeName {
    /// The one parser of node names.
    ///
    /// # Errors
    /// When the text is not an RFC 1123 subdomain of 1 to 253 bytes.
    pub fn parse(text: &str) -> Result<Self, NodeNameError> {
        let label_is_valid = |label: &str| {
            let bytes = label.as_bytes();
            let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        };
        if text.len() <= NAME_BYTES_MAX && text.split('.').all(label_is_valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NodeNameError { shown: text.chars().take(80).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl std::str::FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}
