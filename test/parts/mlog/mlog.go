// Package mlog replaces monis.app/mlog, because no module proxy serves that module. Azure's
// workload identity webhook and the main function of the Secrets Store CSI driver use it as their
// logger. It has only the functions that these two call, and writes text to standard error.
package mlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
)

// LogLevel is a log level.
type LogLevel string

// The log levels, the least verbose first.
const (
	LevelWarning LogLevel = ""
	LevelInfo    LogLevel = "info"
	LevelDebug   LogLevel = "debug"
	LevelTrace   LogLevel = "trace"
	LevelAll     LogLevel = "all"
)

// Enabled reports whether messages of a level are logged.
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

// Logger is a logger with a name and key-value pairs.
type Logger struct{ to *slog.Logger }

// New returns a logger that writes to the program's default logger.
func New() Logger { return Logger{slog.Default()} }

// WithName returns a logger with the given name.
func (l Logger) WithName(name string) Logger { return Logger{l.to.With("logger", name)} }

// WithValues returns a logger with additional key-value pairs.
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

// Setup returns a function that the caller calls at the end of the program. It does nothing.
func Setup() func() { return func() {} }

// ValidateAndSetKlogLevelAndFormatGlobally accepts only the text format, and does not change the
// flags of klog.
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
