//go:build !linux

package node

import (
	"context"
	"errors"
	"runtime"
)

// Missing returns that a node needs Linux.
func Missing() []string { return []string{"Linux: this is " + runtime.GOOS} }

// Enter returns an error.
func Enter(context.Context, Parts, ...string) (int, error) {
	return 0, errors.New("a node needs Linux")
}

func bury() error { return errors.New("a node needs Linux") }

func (m *Machine) settle() error { return errors.New("a node needs Linux") }
