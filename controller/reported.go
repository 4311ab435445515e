package controller

import (
	"errors"

	"github.com/go-logr/logr"
)

// reported is an error that Reconcile returns. Reconcile has logged it, or an earlier error of the
// same class since its latest success, or it is [errSkipped], which is never logged.
//
// controller-runtime logs every returned error as "Reconciler error". A class that cannot be
// written would add such a line at every retry, for as long as its pods exist, from every replica.
// [withoutReported] drops these lines, so operators see:
//
//   - one line "Class is not as its pods need it" when a class starts to fail, with the first error;
//   - every failed reconcile in
//     controller_runtime_reconcile_errors_total{controller="managed-classes"}, and every retry in
//     workqueue_retries_total{name="managed-classes"};
//   - what failed in akv_injector_classes_total{result}, and in events of the pods that mount the
//     class;
//   - other errors of controller-runtime, such as panics, in the log as usual.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }

// withoutReported returns log without the lines about [reported] errors.
func withoutReported(log logr.Logger) logr.Logger {
	sink := log.GetSink()
	if sink == nil {
		return log
	}
	return log.WithSink(filter{sink})
}

// filter is a sink that drops lines about reported errors.
type filter struct{ logr.LogSink }

// Error implements [logr.LogSink].
func (f filter) Error(err error, message string, keysAndValues ...any) {
	if _, ok := errors.AsType[reported](err); !ok {
		f.LogSink.Error(err, message, keysAndValues...)
	}
}

// WithValues implements [logr.LogSink].
func (f filter) WithValues(keysAndValues ...any) logr.LogSink {
	return filter{f.LogSink.WithValues(keysAndValues...)}
}

// WithName implements [logr.LogSink].
func (f filter) WithName(name string) logr.LogSink {
	return filter{f.LogSink.WithName(name)}
}
