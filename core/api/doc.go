// Package api has the vocabulary of akv-injector: the annotation and label keys that users write,
// the [Request] that is parsed from them, the grammar of items, and the [Reason] of each error and
// warning.
//
//	request, errs, warnings := api.ParseRequest(api.Annotations{
//		Pod:           pod.Annotations,
//		Namespace:     namespace.Annotations,
//		NamespaceName: namespace.Name,
//	})
//
// A parser reports all mistakes at once. The package does not look anything up: whether a class, an
// identity or a container exists is decided in package inject.
package api
