//go:build !linux

package process

import "syscall"

// childAttributes asks for nothing: only Linux ends children with their parent.
func childAttributes() *syscall.SysProcAttr { return nil }
