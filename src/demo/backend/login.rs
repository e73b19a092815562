//! LOGIN and AUTHENTICATE.

use std::io;

use imap_codec::AuthenticateDataCodec;
use imap_codec::decode::Decoder;
use imap_codec::imap_types::auth::{AuthMechanism, AuthenticateData};
use imap_codec::imap_types::response::{Code, CommandContinuationRequest, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{DemoSession, TaggedResponse};

impl<S: AsyncRead + AsyncWrite + Unpin> DemoSession<'_, S> {
    /// RFC 3501 section 6.2.2, RFC 4959. PLAIN is RFC 4616, LOGIN was never written down.
    pub(super) async fn authenticate(
        &mut self,
        mechanism: AuthMechanism<'_>,
        initial: Option<Vec<u8>>,
    ) -> io::Result<TaggedResponse> {
        if !self.shared.can(&format!("AUTH={mechanism}")) {
            return Ok(TaggedResponse::no(None, "mechanism not supported"));
        }
        if initial.is_some() && !self.shared.can("SASL-IR") {
            return Ok(TaggedResponse::bad("no initial response here"));
        }
        let cancelled = TaggedResponse::bad("AUTHENTICATE cancelled");
        match mechanism {
            AuthMechanism::Plain => {
                let Some(response) = self.sasl_response(initial, b"").await? else {
                    return Ok(cancelled);
                };
                let parts: Vec<_> = response.split(|byte| *byte == 0).collect();
                Ok(match parts[..] {
                    [authorization, login, password]
                        if authorization.is_empty() || authorization == login =>
                    {
                        self.log_in(login, password)
                    }
                    [_, _, _] => {
                        TaggedResponse::no(Some("AUTHORIZATIONFAILED"), "not as somebody else")
                    }
                    _ => TaggedResponse::bad("not a PLAIN response"),
                })
            }
            AuthMechanism::Login => {
                let Some(login) = self.sasl_response(initial, b"Username:").await? else {
                    return Ok(cancelled);
                };
                let Some(password) = self.sasl_response(None, b"Password:").await? else {
                    return Ok(cancelled);
                };
                Ok(self.log_in(&login, &password))
            }
            _ => Ok(TaggedResponse::no(None, "mechanism not supported")),
        }
    }

    /// The client's initial response, or its answer to `challenge`; `None` if it cancels.
    async fn sasl_response(
        &mut self,
        initial: Option<Vec<u8>>,
        challenge: &'static [u8],
    ) -> io::Result<Option<Vec<u8>>> {
        if initial.is_some() {
            return Ok(initial);
        }
        let challenge = CommandContinuationRequest::base64(challenge);
        self.wire.put(Response::CommandContinuationRequest(challenge));
        let line = self.wire.line().await?.unwrap_or_default();
        Ok(match AuthenticateDataCodec::default().decode(&line) {
            Ok(([], AuthenticateData::Continue(data))) => Some(data.declassify().to_vec()),
            _ => None,
        })
    }

    pub(super) fn log_in(&mut self, login: &[u8], password: &[u8]) -> TaggedResponse {
        let behaviour = self.shared.behaviour();
        let name = String::from_utf8_lossy(login).into_owned();
        let known = std::str::from_utf8(login).is_ok()
            && self.shared.state().account(&name).is_some_and(|own| {
                let right = own.password == password;
                // Where nobody can log in, nothing is said of the password.
                if !right && !behaviour.unavailable {
                    own.refuse(password);
                }
                right
            });
        if behaviour.unavailable || !known {
            self.shared.count(&name, |c| &mut c.refused);
            return match behaviour.unavailable {
                true => TaggedResponse::no(Some("UNAVAILABLE"), "try again later"),
                false => TaggedResponse::no(Some("AUTHENTICATIONFAILED"), "wrong name or password"),
            };
        }
        self.shared.count(&name, |c| &mut c.logins);
        self.account = Some(name);
        let code = behaviour.list_in_login.then(|| self.capabilities()).flatten();
        TaggedResponse { code: code.map(Code::Capability), ..TaggedResponse::ok("logged in") }
    }
}
