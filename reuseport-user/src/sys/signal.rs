//! What is done about a signal.
#![expect(unsafe_code, reason = "sigaction(2)")]

use super::{SyscallError, check};

/// Whether this process ignores `signal`, mostly because its parent did: `nohup`.
pub(crate) fn is_ignored(signal: libc::c_int) -> Result<bool, SyscallError> {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; there is room for the answer.
    let answer = unsafe { libc::sigaction(signal, std::ptr::null(), found.as_mut_ptr()) };
    check("sigaction", libc::c_long::from(answer))?;
    // SAFETY: filled by the call; all zeroes are one too.
    Ok(unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_is_ignored() {
        // Rust's own start ignores it.
        assert!(is_ignored(libc::SIGPIPE).unwrap());
        assert!(!is_ignored(libc::SIGWINCH).unwrap());
        assert!(is_ignored(-1).is_err());
    }
}
