//! The attribute macro of `weir-guest`; it is documented and re-exported there.

use proc_macro::TokenStream;
use quote::quote_spanned;
use syn::spanned::Spanned as _;
use syn::{Error, ItemFn, ReturnType, Signature, parse_macro_input};

const FORM: &str = "a filter is `fn name(line: &[u8]) -> Verdict<'_>`, or a Result of it, or a bool; for state or configuration, \
                    implement `weir_guest::Filter`";

/// Makes a function `fn(line: &[u8]) -> Verdict<'_>` the module's filter. Once a crate.
///
/// The function stays what it is, so a test can call it. It may return whatever is
/// `Into<Verdict<'_>>`: a `Result<Verdict<'_>, E>` sets a line aside when it fails, a `bool` says
/// whether to keep it. A filter with state or configuration
/// implements the trait `Filter` instead.
#[proc_macro_attribute]
pub fn filter(args: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    if !args.is_empty() {
        return refuse(&function.sig.ident, "this attribute takes no arguments");
    }
    if !has_form(&function.sig) {
        return refuse(&function.sig, FORM);
    }
    let name = &function.sig.ident;
    quote_spanned! { function.sig.span() =>
        #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
        #function

        #[doc(hidden)]
        struct TheFilter;

        impl ::weir_guest::Filter for TheFilter {
            fn init(_: &::weir_guest::Context, _: &[u8]) -> ::weir_guest::Result<Self> {
                ::std::result::Result::Ok(Self)
            }

            fn line<'a>(
                &'a mut self,
                line: &'a [u8],
                _: &mut ::weir_guest::Output,
            ) -> ::weir_guest::Verdict<'a> {
                ::std::convert::Into::into(#name(line))
            }
        }

        ::weir_guest::export!(TheFilter);
    }
    .into()
}

fn has_form(signature: &Signature) -> bool {
    signature.inputs.len() == 1
        && signature.receiver().is_none()
        && signature.asyncness.is_none()
        && signature.unsafety.is_none()
        && signature.generics.type_params().next().is_none()
        && !matches!(signature.output, ReturnType::Default)
}

fn refuse(what: impl quote::ToTokens, why: &str) -> TokenStream {
    Error::new_spanned(what, why).to_compile_error().into()
}
