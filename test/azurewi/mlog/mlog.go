// Package mlog stands in for the logger that Azure's webhook is written against, whose module no proxy serves. It has what
// that webhook's handler calls, and writes lines of text to standard error.
package mlog

import (
	"context"
	"log/slog"
)

// LogLevel says how much is logged.
type LogLevel string

// The levels, from the least that is logged to the most.
const (
	LevelWarning LogLevel = ""
	LevelInfo    LogLevel = "info"
	LevelDebug   LogLevel = "debug"
	LevelTrace   LogLevel = "trace"
	LevelAll     LogLevel = "all"
)

// Enabled says whether that much is logged.
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

// Logger logs with a name and values that were given to it.
type Logger struct{ to *slog.Logger }

// New logs to the default logger of the program.
func New() Logger { return Logger{slog.Default()} }

// WithName is a logger that says who logs.
func (l Logger) WithName(name string) Logger { return Logger{l.to.With("logger", name)} }

// WithValues is a logger that says more about what it logs.
func (l Logger) WithValues(keysAndValues ...any) Logger { return Logger{l.to.With(keysAndValues...)} }

// Error logs an error.
func (l Logger) Error(msg string, err error, keysAndValues ...any) {
	l.to.With("error", err).Error(msg, keysAndValues...)
}
