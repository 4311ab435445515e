// Package mlog stands in for the logger that the Secrets Store CSI driver's main function is written against, whose module no proxy
// serves. It has what that function calls. All else of the driver logs by klog, as ever.
package mlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
)

// LogFormat is how lines are written.
type LogFormat string

// The formats, of which there is one: klog's.
const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// Setup returns what ends logging.
func Setup() func() { return func() {} }

// ValidateAndSetKlogLevelAndFormatGlobally leaves klog as its flags have set it.
func ValidateAndSetKlogLevelAndFormatGlobally[Level ~int32](_ context.Context, _ Level, format LogFormat) error {
	if format != FormatText {
		return fmt.Errorf("format %q: must be %q", format, FormatText)
	}
	return nil
}

// Error logs an error.
func Error(msg string, err error, keysAndValues ...any) {
	slog.With("error", err).Error(msg, keysAndValues...)
}

// Fatal logs an error and ends the process.
func Fatal(err error) {
	slog.Error(err.Error())
	os.Exit(1)
}
