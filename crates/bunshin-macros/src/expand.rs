//! From an `impl` block to the block, its proxy, and what calls its methods in a server.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::visit_mut::VisitMut;
use syn::{
    Error, FnArg, GenericParam, Ident, ImplItem, ImplItemFn, ItemImpl, Lifetime, LifetimeParam,
    Pat, PatIdent, ReceiverKind, Result, ReturnType, Type, Visibility, parse_quote,
};

/// An argument: its name, its type in the proxy, the owned type that crosses, and what the
/// method is given of that.
struct Argument {
    name: Ident,
    declared: Type,
    owned: Type,
    passed: TokenStream,
}

pub(crate) fn managed(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut block: ItemImpl = syn::parse2(item)?;
    if let Some((of, _)) = &block.trait_ {
        return Err(Error::new_spanned(
            of,
            "managed takes the methods of the type itself, not those of a trait",
        ));
    }
    let name = proxy_name(attribute, &block)?;
    let (mut proxied, mut arms, mut makers) = (Vec::new(), Vec::new(), Vec::new());
    let self_type = (*block.self_ty).clone();
    for item in &mut block.items {
        let ImplItem::Fn(method) = item else { continue };
        if is_skipped(method) || matches!(method.vis, Visibility::Inherited) {
            continue;
        }
        match method.sig.inputs.first() {
            Some(FnArg::Receiver(receiver)) => {
                let ReceiverKind::Reference(_, _, mutability) = &receiver.kind else {
                    return Err(Error::new_spanned(
                        receiver,
                        "a method of a managed object has &self or &mut self: the object stays \
                         in the server; or leave the method out with #[managed(skip)]",
                    ));
                };
                let number = arms.len() as u64;
                let is_mutable = mutability.is_some();
                let (call, arm) = method_of(method, number, is_mutable, &self_type)?;
                proxied.push(call);
                arms.push(arm);
            }
            _ if gives_self(method, &self_type) => makers.push(maker_of(method, &self_type)?),
            _ => {}
        }
    }
    assemble(&block, &name, &proxied, &arms, &makers)
}

fn assemble(
    block: &ItemImpl,
    name: &Ident,
    proxied: &[TokenStream],
    arms: &[TokenStream],
    makers: &[TokenStream],
) -> Result<TokenStream> {
    let self_type = &*block.self_ty;
    let (_, _, bounds) = block.generics.split_for_impl();
    let mut names = Vec::new();
    for parameter in &block.generics.params {
        match parameter {
            GenericParam::Type(parameter) => names.push(parameter.ident.clone()),
            other => {
                return Err(Error::new_spanned(
                    other,
                    "the parameters of a managed type are types; lifetimes end with a process",
                ));
            }
        }
    }
    let used = (!names.is_empty()).then(|| quote!(<#(#names),*>));
    let mut full = block.generics.clone();
    for parameter in full.type_params_mut() {
        parameter.bounds.push(parse_quote!('static));
    }
    let mut decoding = full.clone();
    let lifetime = LifetimeParam::new(Lifetime::new("'de", proc_macro2::Span::call_site()));
    decoding.params.insert(0, GenericParam::Lifetime(lifetime));
    let (decoding, _, _) = decoding.split_for_impl();
    let (full, _, _) = full.split_for_impl();
    let inner = quote!(::bunshin::manager::Proxy<#self_type>);
    let doc = format!(
        "A proxy to a `{}` in a manager's server.",
        quote!(#self_type).to_string().replace(' ', "")
    );
    Ok(quote! {
        #block

        #[doc = #doc]
        #[allow(unreachable_pub)]
        pub struct #name #full(#inner) #bounds;

        #[allow(missing_docs, unreachable_pub, private_interfaces)]
        impl #full #name #used #bounds {
            #(#makers)*
            #(#proxied)*
        }

        impl #full ::std::convert::From<#inner> for #name #used #bounds {
            fn from(proxy: #inner) -> Self {
                Self(proxy)
            }
        }

        impl #full ::std::clone::Clone for #name #used #bounds {
            fn clone(&self) -> Self {
                Self(::std::clone::Clone::clone(&self.0))
            }
        }

        impl #full ::std::fmt::Debug for #name #used #bounds {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Debug::fmt(&self.0, f)
            }
        }

        impl #full ::bunshin::manager::macro_support::Serialize for #name #used #bounds {
            fn serialize<__S: ::bunshin::manager::macro_support::Serializer>(
                &self,
                serializer: __S,
            ) -> ::std::result::Result<__S::Ok, __S::Error> {
                ::bunshin::manager::macro_support::Serialize::serialize(&self.0, serializer)
            }
        }

        impl #decoding ::bunshin::manager::macro_support::Deserialize<'de> for #name #used #bounds {
            fn deserialize<__D: ::bunshin::manager::macro_support::Deserializer<'de>>(
                deserializer: __D,
            ) -> ::std::result::Result<Self, __D::Error> {
                ::bunshin::manager::macro_support::Deserialize::deserialize(deserializer).map(Self)
            }
        }

        impl #full ::bunshin::manager::Managed for #self_type #bounds {
            type Proxy = #name #used;

            fn call(
                object: &::std::sync::RwLock<Self>,
                method: u64,
                call: &mut ::bunshin::manager::MethodCall,
            ) {
                match method {
                    #(#arms)*
                    _ => call.unknown(),
                }
            }
        }
    })
}

/// The name in the attribute, or the type's with `Proxy` behind it.
fn proxy_name(attribute: TokenStream, block: &ItemImpl) -> Result<Ident> {
    if !attribute.is_empty() {
        return syn::parse2(attribute);
    }
    match &*block.self_ty {
        Type::Path(path) => match path.path.segments.last() {
            Some(last) => Ok(format_ident!("{}Proxy", last.ident)),
            None => Err(Error::new_spanned(path, "managed needs a type with a name")),
        },
        other => Err(Error::new_spanned(
            other,
            "managed needs a type with a name",
        )),
    }
}

/// Whether `#[managed(skip)]` stands before a method; takes it away.
fn is_skipped(method: &mut ImplItemFn) -> bool {
    let before = method.attrs.len();
    method.attrs.retain(|attribute| {
        let is_ours = attribute.path().segments.last();
        is_ours.is_none_or(|last| last.ident != "managed")
    });
    method.attrs.len() < before
}

fn gives_self(method: &ImplItemFn, self_type: &Type) -> bool {
    match &method.sig.output {
        ReturnType::Type(_, given) => **given == parse_quote!(Self) || **given == *self_type,
        ReturnType::Default => false,
    }
}

/// A method of the proxy, and the arm that calls it in the server.
fn method_of(
    method: &ImplItemFn,
    number: u64,
    is_mutable: bool,
    self_type: &Type,
) -> Result<(TokenStream, TokenStream)> {
    check(method)?;
    let arguments = arguments(method, self_type)?;
    let (name, vis) = (&method.sig.ident, &method.vis);
    let docs = docs(method);
    let given = match &method.sig.output {
        ReturnType::Type(_, given) => without_self((**given).clone(), self_type),
        ReturnType::Default => parse_quote!(()),
    };
    if matches!(given, Type::Reference(_)) {
        return Err(Error::new_spanned(
            given,
            "the result of a managed method crosses to another process: give an owned value",
        ));
    }
    let names: Vec<_> = arguments.iter().map(|one| &one.name).collect();
    let declared: Vec<_> = arguments.iter().map(|one| &one.declared).collect();
    let owned: Vec<_> = arguments.iter().map(|one| &one.owned).collect();
    let passed: Vec<_> = arguments.iter().map(|one| &one.passed).collect();
    let proxied = quote! {
        #(#docs)*
        #vis fn #name(
            &self,
            #(#names: #declared),*
        ) -> ::std::result::Result<#given, ::bunshin::CallError> {
            self.0.call::<_, #given>(#number, &(#(&#names,)*))
        }
    };
    let access = if is_mutable {
        quote!(write)
    } else {
        quote!(read)
    };
    let arm = quote! {
        #number => call.run(|(#(#names,)*): (#(#owned,)*)| {
            ::bunshin::manager::macro_support::#access(object, |object| object.#name(#(#passed),*))
        }),
    };
    Ok((proxied, arm))
}

/// A function of the proxy that makes an object in a server.
fn maker_of(method: &ImplItemFn, self_type: &Type) -> Result<TokenStream> {
    check(method)?;
    let arguments = arguments(method, self_type)?;
    let (name, vis) = (&method.sig.ident, &method.vis);
    let docs = docs(method);
    let names: Vec<_> = arguments.iter().map(|one| &one.name).collect();
    let owned: Vec<_> = arguments.iter().map(|one| &one.owned).collect();
    let passed: Vec<_> = arguments.iter().map(|one| &one.passed).collect();
    Ok(quote! {
        #(#docs)*
        #vis fn #name(
            manager: &::bunshin::Manager,
            #(#names: #owned),*
        ) -> ::std::result::Result<Self, ::bunshin::CallError> {
            manager.manage(|#(#names: #owned),*| <#self_type>::#name(#(#passed),*), (#(#names,)*))
        }
    })
}

fn check(method: &ImplItemFn) -> Result<()> {
    if let Some(word) = &method.sig.asyncness {
        return Err(Error::new_spanned(word, "a managed method is not async"));
    }
    if let Some(parameter) = method.sig.generics.type_params().next() {
        return Err(Error::new_spanned(
            parameter,
            "a managed method has no type parameters: the server must know which code to run",
        ));
    }
    if method.sig.inputs.len() > 9 {
        return Err(Error::new_spanned(
            &method.sig.inputs,
            "a managed method has up to eight arguments",
        ));
    }
    Ok(())
}

fn docs(method: &ImplItemFn) -> Vec<&syn::Attribute> {
    let attributes = method.attrs.iter();
    attributes
        .filter(|attribute| attribute.path().is_ident("doc"))
        .collect()
}

fn arguments(method: &ImplItemFn, self_type: &Type) -> Result<Vec<Argument>> {
    let mut found = Vec::new();
    for (place, argument) in method.sig.inputs.iter().enumerate() {
        let FnArg::Typed(typed) = argument else {
            continue;
        };
        let name = match &*typed.pat {
            Pat::Ident(PatIdent { ident, .. }) => ident.clone(),
            _ => format_ident!("argument_{}", place),
        };
        let declared = without_self((*typed.ty).clone(), self_type);
        let (owned, passed) = match &declared {
            Type::Reference(reference) if reference.mutability.is_some() => {
                return Err(Error::new_spanned(
                    reference,
                    "what a managed method changes of its arguments does not come back",
                ));
            }
            Type::Reference(reference) => match &*reference.elem {
                Type::Path(path) if path.path.is_ident("str") => {
                    (parse_quote!(::std::string::String), quote!(&#name))
                }
                Type::Slice(slice) => {
                    let element = &slice.elem;
                    (parse_quote!(::std::vec::Vec<#element>), quote!(&#name))
                }
                other => (other.clone(), quote!(&#name)),
            },
            other => (other.clone(), quote!(#name)),
        };
        found.push(Argument {
            name,
            declared,
            owned,
            passed,
        });
    }
    Ok(found)
}

/// The type with `Self` written out, as the proxy has another one.
fn without_self(mut given: Type, self_type: &Type) -> Type {
    struct Replace<'a>(&'a Type);
    impl VisitMut for Replace<'_> {
        fn visit_type_mut(&mut self, node: &mut Type) {
            if *node == parse_quote!(Self) {
                *node = self.0.clone();
            } else {
                syn::visit_mut::visit_type_mut(self, node);
            }
        }
    }
    Replace(self_type).visit_type_mut(&mut given);
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(block: TokenStream) -> String {
        managed(TokenStream::new(), block).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_cross_is_refused_with_a_reason() {
        let by_value = refused(quote!(impl A { pub fn take(self) {} }));
        assert!(by_value.contains("&self"), "{by_value}");
        let borrowed = refused(quote!(impl A { pub fn name(&self) -> &str { "" } }));
        assert!(borrowed.contains("owned"), "{borrowed}");
        let changed = refused(quote!(impl A { pub fn fill(&self, to: &mut Vec<u8>) {} }));
        assert!(changed.contains("come back"), "{changed}");
        let generic = refused(quote!(impl A { pub fn any<T>(&self, t: T) {} }));
        assert!(generic.contains("type parameters"), "{generic}");
        let of_trait = refused(quote!(impl Clone for A { fn clone(&self) -> A { A } }));
        assert!(of_trait.contains("trait"), "{of_trait}");
        let lent = refused(quote!(
            impl<'a> A<'a> {
                pub fn get(&self) {}
            }
        ));
        assert!(lent.contains("lifetimes"), "{lent}");
    }

    #[test]
    fn private_and_skipped_methods_stay_out() {
        let block = quote!(impl A {
            fn hidden(&self) {}
            #[managed(skip)]
            pub fn skipped(self) {}
            pub fn shown(&self) {}
        });
        let text = managed(quote!(Stand), block).unwrap().to_string();
        let proxy = &text[text.find("struct Stand").unwrap()..];
        assert!(proxy.contains("pub fn shown"));
        assert!(!proxy.contains("hidden") && !proxy.contains("skipped"));
    }
}
