//go:build !linux

package cgroups

import "errors"

// Group is a cgroup, which only Linux has.
type Group struct{}

var errLinux = errors.New("cgroups need Linux")

// NewName returns an empty name.
func NewName() string { return "" }

// Make returns an error.
func Make(string) (*Group, error) { return nil, errLinux }

// Remove returns an error.
func (*Group) Remove() error { return errLinux }

// LimitMemory returns an error.
func (*Group) LimitMemory(int64) error { return errLinux }

// Add returns an error.
func (*Group) Add(int) error { return errLinux }
