//! Syntax of single texts that `label::syntax` does not know.

/// Names of ports of a container (RFC 6335, IANA service names).
pub(super) fn port_name(text: &str) -> Result<(), &'static str> {
    if text.len() > 15 {
        return Err("must be no more than 15 characters");
    }
    if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)");
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("must not begin or end with a hyphen");
    }
    Ok(())
}

/// Names of environment variables (KEP-4369).
pub(super) fn variable_name(text: &str) -> Result<(), &'static str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        Ok(())
    } else {
        Err("a valid environment variable name must consist only of printable ASCII characters other than '='")
    }
}

/// Keys of ConfigMaps and Secrets.
pub(super) fn config_key(text: &str) -> Result<(), &'static str> {
    if text.len() > 253 {
        return Err("must be no more than 253 bytes");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        );
    }
    match text {
        "." => Err("must not be '.'"),
        ".." => Err("must not be '..'"),
        _ if text.starts_with("..") => Err("must not start with '..'"),
        _ => Ok(()),
    }
}

/// A path below some folder.
pub(super) fn relative_path(text: &str) -> Result<(), &'static str> {
    if text.starts_with('/') { Err("must be a relative path") } else { no_step_back(text) }
}

/// A path without a `..` in it.
pub(super) fn no_step_back(text: &str) -> Result<(), &'static str> {
    if text.split('/').any(|step| step == "..") { Err("must not contain '..'") } else { Ok(()) }
}

pub(super) fn ip_address(text: &str) -> Result<(), &'static str> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
    }
}

/// Names of HTTP headers.
pub(super) fn header_name(text: &str) -> Result<(), &'static str> {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        Ok(())
    } else {
        Err(
            "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
        )
    }
}

/// Names of kernel parameters, their parts divided by dots or slashes.
pub(super) fn sysctl_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().next_back()];
        let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        ends.iter().all(|end| end.as_ref().is_some_and(is_alphanumeric))
            && part.bytes().all(|byte| is_alphanumeric(&byte) || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.split(['.', '/']).all(is_part)
}

/// Base64 as Go's `encoding/json` reads bytes.
pub(super) fn base64_bytes(text: &str) -> Option<usize> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| bytes.len())
}
