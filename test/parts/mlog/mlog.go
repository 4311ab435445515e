// Package mlog replaces monis.app/mlog, the logger of Azure's workload identity webhook and of the main function of the Secrets
// Store CSI driver: no module proxy serves the module. It has the functions that the two call, and writes text to standard error.
package mlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
)

// LogLevel is a level of logging.
type LogLevel string

// The levels, in ascending order of output.
const (
	LevelWarning LogLevel = ""
	LevelInfo    LogLevel = "info"
	LevelDebug   LogLevel = "debug"
	LevelTrace   LogLevel = "trace"
	LevelAll     LogLevel = "all"
)

// Enabled reports whether a level is logged.
func Enabled(level LogLevel) bool {
	switch level {
	case LevelWarning:
		return slog.Default().Enabled(context.Background(), slog.LevelWarn)
	case LevelInfo:
		return slog.Default().Enabled(context.Background(), slog.LevelInfo)
	case LevelDebug, LevelTrace, LevelAll:
		return slog.Default().Enabled(context.Background(), slog.LevelDebug)
	}
	return false
}

// Logger is a logger with a name and values.
type Logger struct{ to *slog.Logger }

// New returns a logger that writes to the default logger of the program.
func New() Logger { return Logger{slog.Default()} }

// WithName returns a logger with a name.
func (l Logger) WithName(name string) Logger { return Logger{l.to.With("logger", name)} }

// WithValues returns a logger with more values.
func (l Logger) WithValues(keysAndValues ...any) Logger { return Logger{l.to.With(keysAndValues...)} }

// Error logs an error.
func (l Logger) Error(msg string, err error, keysAndValues ...any) {
	l.to.With("error", err).Error(msg, keysAndValues...)
}

// LogFormat is the format of log lines.
type LogFormat string

// The formats.
const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// Setup returns the function that ends logging.
func Setup() func() { return func() {} }

// ValidateAndSetKlogLevelAndFormatGlobally accepts text only, and leaves klog as its flags set it.
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
