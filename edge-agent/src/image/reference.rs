//! What an image is called: Docker's and Kubernetes' reference grammar (github.com/distribution/reference), normalised.

use std::fmt;

/// Longest repository name, as registries accept it.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";

/// A normalised reference: `nginx` is `docker.io/library/nginx:latest`. With a digest, the digest alone says which image is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference: {why}")]
pub struct ParseError {
    pub text: String,
    pub why: &'static str,
}

impl Reference {
    /// # Errors
    /// When the text does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = |why| ParseError { text: text.chars().take(300).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(wrong("after the @ stands no sha256:<64 hex digits>")),
            None => (text, None),
        };
        let path_from = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_from..].rfind(':') {
            Some(colon) => (&rest[..path_from + colon], Some(&rest[path_from + colon + 1..])),
            None => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return Err(wrong(
                "a tag has 1 to 128 letters, digits, '_', '.' and '-', and starts with none of the last two",
            ));
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if is_domain_like(first) => (first, path.to_owned()),
            _ => (DEFAULT_DOMAIN, name.to_owned()),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path };
        if !is_domain(domain) {
            return Err(wrong("the registry is no host name with an optional port"));
        }
        if !path.split('/').all(is_component) {
            return Err(wrong(
                "the parts of a name are lower-case letters and digits, separated by '.', '_', '__' or '-'",
            ));
        }
        let repository = format!("{domain}/{path}");
        if repository.len() > NAME_BYTES_MAX {
            return Err(wrong("a name has at most 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { repository, tag, digest })
    }

    /// `docker.io/library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `sha256:...`, when the reference has one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `None` only beside a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

/// `sha256:` and 64 lower-case hex digits: the one algorithm images use.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_sha256_hex)
}

pub(super) fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// Whether the part before the first slash is a registry and not a folder of Docker Hub.
fn is_domain_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let host_is_good = if domain.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    };
    host_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_plain = part.as_bytes().first().is_some_and(plain) && part.as_bytes().last().is_some_and(plain);
    let separators = part.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    let good = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    ends_plain && separators.into_iter().all(good)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let with_digest = format!("nginx@{digest}");
        let with_both = format!("nginx:1.2@{digest}");
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine".into()),
            ("library/nginx", "docker.io/library/nginx:latest".into()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".into()),
            ("acme/pump", "docker.io/acme/pump:latest".into()),
            ("localhost/pump", "localhost/pump:latest".into()),
            ("localhost:5000/pump:a", "localhost:5000/pump:a".into()),
            ("ghcr.io/a/b/c__d", "ghcr.io/a/b/c__d:latest".into()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".into()),
            (&with_digest, format!("docker.io/library/{with_digest}")),
            (&with_both, format!("docker.io/library/{with_both}")),
        ];
        for (text, expected) in table {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected, "{text}");
            assert_eq!(Reference::parse(&expected).unwrap().to_string(), expected, "once more");
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in [
            "",
            ":",
            "nginx:",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "nginx:-x",
            "a b",
            "../x",
            "x@sha256:12",
            "x@md5:aa",
            "a.b:99999/x",
            "a..b",
            "a___b",
            "-a",
            "nginx\u{e9}",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(Reference::parse(&"a".repeat(250)).is_err());
    }
}
