// SPDX-License-Identifier: Apache-2.0
// An app's contract with the functions that the apps interface reads (apps.md section 4), and a multicall.
pragma solidity ^0.8.20;

contract App {
    event ComposeHashAdded(bytes32 composeHash);

    mapping(bytes32 => bool) public allowedComposeHashes;
    mapping(bytes32 => bool) public allowedDeviceIds;
    bool public allowAnyDevice;

    function addComposeHash(bytes32 hash) external {
        allowedComposeHashes[hash] = true;
        emit ComposeHashAdded(hash);
    }

    function removeComposeHash(bytes32 hash) external {
        allowedComposeHashes[hash] = false;
    }

    function addDevice(bytes32 device) external {
        allowedDeviceIds[device] = true;
    }

    function setAllowAnyDevice(bool any) external {
        allowAnyDevice = any;
    }
}

contract Multicall {
    struct Call {
        address target;
        bool allowFailure;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    function aggregate3(Call[] calldata calls) external payable returns (Result[] memory results) {
        results = new Result[](calls.length);
        for (uint256 i = 0; i < calls.length; i++) {
            (bool success, bytes memory data) = calls[i].target.call(calls[i].callData);
            require(success || calls[i].allowFailure, "call failed");
            results[i] = Result(success, data);
        }
    }
}
